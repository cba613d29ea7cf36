#!/usr/bin/perl
# Gives files of the host wider modes in the test machine, before its root is mounted: for each it
# puts an entry with the new mode and no data into the overlay's upper layer, marked to have its
# data in the lower one. A chmod in the mounted overlay would do the same 100 times slower, too slow
# for a checkout that was made with umask 077.
#
# Runs with the lower layer as its root; the argument is the upper one's folder. Descriptor 3 lists
# what to open up: a letter, mode, uid, gid, size, time of change, path; each entry ends with a NUL.
# p: a folder to be passed through; d: a folder, f: a file to be read.
use strict;
use warnings;

use constant SYS_SETXATTR => 188;

my ($upper) = @ARGV;
my ($attribute, $nothing) = ('trusted.overlay.metacopy', '');

sub make_parents {
	my ($path) = @_;
	my $parent = $path =~ s{/[^/]*$}{}r;
	return if -d "$upper$parent";
	make_parents($parent);
	# The upper layer's folder hides the lower one's owner and mode.
	my (undef, undef, $mode, undef, $uid, $gid) = lstat $parent or return;
	mkdir "$upper$parent" or die "$parent: $!";
	chown $uid, $gid, "$upper$parent" and chmod $mode & 07777, "$upper$parent" or die "$parent: $!";
}

local $/ = "\0";
open my $list, '<&=', 3 or die "list: $!";
while (<$list>) {
	chomp;
	my ($type, $mode, $uid, $gid, $size, $time, $path) = split / /, $_, 7;
	my $target = "$upper$path";
	$mode = oct $mode;
	make_parents($path);
	if ($type eq 'f') {
		$mode |= $mode & 0111 ? 0555 : 0444;
		open my $file, '>', $target or die "$path: $!";
		truncate $file, $size or die "$path: $!";
		syscall(SYS_SETXATTR, $target, $attribute, $nothing, 0, 0) == 0 or die "$path: setxattr: $!";
	} else {
		$mode |= $type eq 'p' ? 0111 : 0555;
		-d $target or mkdir $target or die "$path: $!";
	}
	chown $uid, $gid, $target and chmod $mode, $target and utime $time, $time, $target
		or die "$path: $!";
}
