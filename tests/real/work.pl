# SPDX-License-Identifier: Apache-2.0
# A bit of everything an interpreter does, round after round: every line must be the same.
use strict;
use warnings;
$| = 1;

sub round_of_work {
	my ($sum, %count, @words) = (0);
	for my $i (1 .. 4000) {
		my $word = sprintf('%05d:%s', ($i * 7919) % 4001, 'x' x ($i % 13));
		push @words, $word;
		$count{ substr $word, 0, 2 } += length $word;
	}
	for my $word (sort { $a cmp $b } @words) {
		my ($number) = $word =~ /^0*(\d+):x*$/ or die "no match in $word";
		$sum = ($sum * 31 + $number) % 1_000_000_007;
	}
	for my $key (sort keys %count) {
		$sum = ($sum * 33 + $count{$key}) % 1_000_000_007;
	}
	for my $i (1 .. 500) {    # every error is a longjmp
		eval { die { code => $i } };
		$sum = ($sum + $@->{code}) % 1_000_000_007;
	}
	my $text = join ' ', @words;
	$sum += ($text =~ s/x{3,7}/<$&>/g);
	$sum += unpack('%32C*', $text) + length pack('(w/a*)*', @words);
	my $wave = 0;
	$wave += sin($_) * exp(-$_ / 100) for 1 .. 2000;
	return sprintf '%d %.15g %s', $sum, $wave, join ',', (sort { $b <=> $a } map { $_ * 37 % 101 } 1 .. 50)[0 .. 4];
}

my $rounds = shift // -1;
while ($rounds--) {
	print round_of_work(), "\n";
}
