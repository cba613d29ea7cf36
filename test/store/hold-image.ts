import { type Image, openImage } from '../../lib/store/index.ts';

/** Another process that serves the image given to it, as its parent says. */
let image: Image | undefined;

process.on('message', (order) => {
  if (order === 'close') image!.close();
  else {
    const readOnly = order === 'read';
    image = openImage(process.argv[2]!, { readOnly, direct: false, blockSize: 512, mmap: true });
  }
  process.send!('done');
});
