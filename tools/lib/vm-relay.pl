#!/usr/bin/perl
# vm-relay.pl TIMEOUT STATUS_FILE: the host's end of vm-agent.pl. Copies the frames on stdin to
# stdout and stderr as they come and writes the command's exit status to STATUS_FILE. Without a
# status it ends by SIGALRM (time is up), by SIGPIPE (nobody reads on), or at the machine's end.
use strict;
use warnings;

my ($timeout, $status_file) = @ARGV;
$SIG{$_} = 'DEFAULT' for 'ALRM', 'PIPE';
alarm $timeout;

sub read_exactly {
	my ($count) = @_;
	my $data = '';
	while (length $data < $count) {
		sysread STDIN, $data, $count - length $data, length $data or exit;
	}
	return $data;
}

sub write_all {
	my ($stream, $data) = @_;
	while (length $data) {
		my $written = syswrite $stream, $data;
		if (!defined $written && $!{EAGAIN}) { # the caller's terminal or pipe may be non-blocking
			vec(my $ready, fileno $stream, 1) = 1;
			select undef, $ready, undef, undef;
			next;
		}
		die "vm: writing the output: $!\n" unless defined $written;
		substr $data, 0, $written, '';
	}
}

for (;;) {
	my ($type, $length) = unpack 'aN', read_exactly(5);
	my $data = read_exactly($length);
	if ($type eq 'x') {
		open my $file, '>', $status_file or die "vm: $status_file: $!\n";
		print $file $data;
		exit;
	}
	write_all($type eq 'o' ? \*STDOUT : \*STDERR, $data);
}
