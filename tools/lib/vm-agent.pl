#!/usr/bin/perl
# PID 1 of the test machine: runs the command and sends what it writes, and at last its status, to
# vm-relay.pl on the host, all through one virtio port: in one stream nothing can overtake, so
# when the status has come, so has all output. Perl, because perl-base is on every Debian and
# starts in an instant even under emulation.
#
# A frame: one letter (o: stdout, e: stderr, x: exit status), the length (32 bits, big endian), data.
use strict;
use warnings;

use constant { FIONREAD => 0x541b, CHUNK => 65536 };

sub slurp {
	my ($name) = @_;
	open my $file, '<:raw', "/run/vm/$name" or die "$name: $!";
	local $/;
	return split /\0/, <$file> // '', -1;
}

my ($port) = grep { -e } map { "/dev/$_" } map { m{([^/]+)/name$} } grep {
	open my $file, '<', $_ or die "$_: $!";
	<$file> eq "vduse.vm\n";
} glob '/sys/class/virtio-ports/*/name';
open my $host, '+<:raw', $port or die "$port: $!";

sub send_frame {
	my ($type, $data) = @_;
	my $frame = pack('aN', $type, length $data) . $data;
	while (length $frame) {
		my $sent = syswrite $host, $frame;
		die "$port: $!" unless defined $sent;
		substr $frame, 0, $sent, '';
	}
}

pipe my $out, my $out_end or die "pipe: $!";
pipe my $err, my $err_end or die "pipe: $!";
pipe my $status, my $status_end or die "pipe: $!";
# So that a command that has changed its uid can still open /dev/stderr.
chmod 0666, $out_end, $err_end or die "chmod: $!";

# Orphans become children of PID 1; nobody waits for them.
$SIG{CHLD} = 'IGNORE';
my $runner = fork // die "fork: $!";
if ($runner == 0) {
	$SIG{CHLD} = 'DEFAULT';
	my $command = fork // die "fork: $!";
	if ($command == 0) {
		setpgrp; # or a kill of its own group would reach further
		my @argv = slurp('argv'); pop @argv;
		my @env = slurp('env'); pop @env;
		my ($folder) = slurp('folder');
		%ENV = map { split /=/, $_, 2 } @env;
		open STDIN, '<', '/dev/null' and open STDOUT, '>&', $out_end and open STDERR, '>&', $err_end
			or die "vm: $!";
		if (!chdir $folder) { print STDERR "vm: $folder: $!\n"; exit 125 }
		{ no warnings 'exec'; exec { $argv[0] } @argv }
		print STDERR "vm: $argv[0]: $!\n";
		exit($!{ENOENT} ? 127 : 126);
	}
	waitpid $command, 0;
	syswrite $status_end, $? & 127 ? 128 + ($? & 127) : $? >> 8;
	exit;
}
close $_ for $out_end, $err_end, $status_end;

my %type = (fileno $out => 'o', fileno $err => 'e');
my @open = ($out, $err);
for (;;) {
	my $ready = '';
	vec($ready, fileno $_, 1) = 1 for @open, $status;
	select $ready, undef, undef, undef;
	last if vec $ready, fileno $status, 1;
	for my $stream (grep { vec $ready, fileno $_, 1 } @open) {
		my $count = sysread $stream, my $data, CHUNK;
		if ($count) { send_frame($type{fileno $stream}, $data) }
		else { @open = grep { $_ != $stream } @open }
	}
}
# What the command wrote is all in the pipes. What it left running may write on for ever, so
# nobody waits for the pipes' end.
for my $stream (@open) {
	my $held = pack 'i', 0;
	ioctl $stream, FIONREAD, $held or die "FIONREAD: $!";
	sysread $stream, my $data, unpack 'i', $held or next;
	send_frame($type{fileno $stream}, $data);
}
sysread $status, my $result, 16;
send_frame('x', $result);
sleep; # the host ends the machine; PID 1 must not
