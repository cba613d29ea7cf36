{
  # For node-gyp users; the checkout builds with native/CMakeLists.txt, which has the same sources.
  "targets": [
    {
      "target_name": "vduse",
      "sources": [
        "native/addon.cc",
        "native/args.cc",
        "native/copy.cc",
        "native/environment.cc",
        "native/errors.cc",
        "native/fd.cc",
        "native/file.cc",
        "native/file-map.cc",
        "native/interrupt.cc",
        "native/io.cc",
        "native/io-pool.cc",
        "native/keys.cc",
        "native/mapping.cc",
        "native/netlink.cc",
        "native/sigbus.cc",
        "native/socket.cc",
        "native/uring.cc",
        "native/vdpa.cc",
        "native/vduse.cc",
        "native/watch.cc"
      ],
      "include_dirs": ["<!@(node -p \"require('node-addon-api').include_dir\")"],
      "defines": ["NAPI_VERSION=8", "NAPI_CPP_EXCEPTIONS", "NODE_ADDON_API_DISABLE_DEPRECATED"],
      "cflags!": ["-fno-exceptions"],
      "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-std=gnu++17", "-std=gnu++20"],
      "cflags_cc": ["-std=c++17", "-Wall", "-Wextra", "-fvisibility=hidden"],
      "ldflags": ["-Wl,-z,nodelete", "-pthread"]
    }
  ]
}
