//! Sixteen blocks at a time: word `n` of all of them in vector `n`, a block to a lane.
#![allow(unsafe_code, reason = "the instructions are there on some processors only")]

use core::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_ror_epi32, _mm512_set1_epi32, _mm512_set4_epi32, _mm512_setzero_si512,
    _mm512_shuffle_epi8, _mm512_shuffle_i32x4, _mm512_srli_epi32, _mm512_ternarylogic_epi32,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use zerocopy::transmute;

use super::{Block, Digest, INITIAL, PADDING, ROUND_CONSTANTS};

/// Lanes of 32 bits in a vector, and 32-bit words in 64 bytes.
const LANES: usize = 16;
type Words = [__m512i; LANES];
type State = [__m512i; 8];

/// Hashes the first multiple of sixteen blocks; none if the processor lacks AVX-512.
pub(super) fn hash_groups(blocks: &[Block], digests: &mut [Digest]) -> usize {
    if !(is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")) {
        return 0;
    }
    let (groups, _) = blocks.as_chunks();
    let (digests, _) = digests.as_chunks_mut();
    for (blocks, digests) in groups.iter().zip(&mut *digests) {
        // SAFETY: the processor has what the function is compiled for, as just detected.
        *digests = unsafe { hash_group(blocks) };
    }
    groups.len().min(digests.len()) * LANES
}

#[target_feature(enable = "avx512f,avx512bw")]
fn hash_group(blocks: &[Block; LANES]) -> [Digest; LANES] {
    let mut state = INITIAL.map(|word| splat(word));
    // The salt is half as long as what is hashed at a time: each line of 64 bytes is hashed in halves, the first
    // together with the last half of the line before.
    let mut words = [_mm512_setzero_si512(); LANES];
    for line in 0..size_of::<Block>() / 64 {
        let next = transposed(blocks, line);
        words[8..].copy_from_slice(&next[..8]);
        compress(&mut state, words);
        words[..8].copy_from_slice(&next[8..]);
    }
    words[8..].copy_from_slice(&PADDING.map(|word| splat(word)));
    compress(&mut state, words);

    let state: [[u32; LANES]; 8] = transmute!(state);
    std::array::from_fn(|lane| transmute!(state.map(|word| word[lane].to_be_bytes())))
}

#[target_feature(enable = "avx512f")]
fn splat(word: u32) -> __m512i {
    _mm512_set1_epi32(word.cast_signed())
}

/// The words of the same 64 bytes of all blocks.
#[target_feature(enable = "avx512f,avx512bw")]
fn transposed(blocks: &[Block; LANES], line: usize) -> Words {
    let from_big_endian = _mm512_set4_epi32(0x0C0D_0E0F, 0x0809_0A0B, 0x0405_0607, 0x0001_0203);
    let mut rows = [_mm512_setzero_si512(); LANES];
    for (row, block) in rows.iter_mut().zip(blocks) {
        let (lines, _) = block.as_chunks::<64>();
        *row = _mm512_shuffle_epi8(transmute!(lines[line]), from_big_endian);
    }
    // In each quarter of a vector, the words of the same number of four blocks.
    for four in rows.as_chunks_mut::<4>().0 {
        let [a, b, c, d] = *four;
        let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (low2, high2) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        *four = [
            _mm512_unpacklo_epi64(low, low2),
            _mm512_unpackhi_epi64(low, low2),
            _mm512_unpacklo_epi64(high, high2),
            _mm512_unpackhi_epi64(high, high2),
        ];
    }
    // Quarters of the same number of four vectors.
    const EVEN: i32 = 0x88;
    const ODD: i32 = 0xDD;
    let mut words = rows;
    for n in 0..4 {
        let (a, b, c, d) = (rows[n], rows[n + 4], rows[n + 8], rows[n + 12]);
        let (even, odd) = (_mm512_shuffle_i32x4::<EVEN>(a, b), _mm512_shuffle_i32x4::<ODD>(a, b));
        let (even2, odd2) = (_mm512_shuffle_i32x4::<EVEN>(c, d), _mm512_shuffle_i32x4::<ODD>(c, d));
        words[n] = _mm512_shuffle_i32x4::<EVEN>(even, even2);
        words[n + 4] = _mm512_shuffle_i32x4::<EVEN>(odd, odd2);
        words[n + 8] = _mm512_shuffle_i32x4::<ODD>(even, even2);
        words[n + 12] = _mm512_shuffle_i32x4::<ODD>(odd, odd2);
    }
    words
}

/// Calls a function for each of sixteen words. Written out, because state and words are in registers only where
/// the compiler knows their numbers.
macro_rules! each_word {
    ($function:ident($($argument:expr),*)) => {
        each_word!($function($($argument),*) 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($function:ident $arguments:tt $($number:literal)*) => {
        $($function::<$number> $arguments;)*
    };
}

/// Hashes the next 64 bytes of all blocks.
#[target_feature(enable = "avx512f")]
fn compress(state: &mut State, mut words: Words) {
    let [first, rest @ ..] = &ROUND_CONSTANTS;
    let mut next = *state;
    each_word!(round(&mut next, &words, first));
    for constants in rest {
        each_word!(scheduled_round(&mut next, &mut words, constants));
    }
    for (word, next) in state.iter_mut().zip(next) {
        *word = _mm512_add_epi32(*word, next);
    }
}

/// Puts the word of the message schedule that comes sixteen behind word `N` in its place; then a round with it.
#[target_feature(enable = "avx512f")]
fn scheduled_round<const N: usize>(state: &mut State, words: &mut Words, constants: &[u32; LANES]) {
    let (early, late) = (words[(N + 1) % LANES], words[(N + 14) % LANES]);
    let sigma0 = xor(ror::<7>(early), ror::<18>(early), _mm512_srli_epi32::<3>(early));
    let sigma1 = xor(ror::<17>(late), ror::<19>(late), _mm512_srli_epi32::<10>(late));
    let sum = _mm512_add_epi32(words[N], words[(N + 9) % LANES]);
    words[N] = _mm512_add_epi32(sum, _mm512_add_epi32(sigma0, sigma1));
    round::<N>(state, words, constants);
}

#[target_feature(enable = "avx512f")]
fn round<const N: usize>(state: &mut State, words: &Words, constants: &[u32; LANES]) {
    /// Tables of three inputs: the first one's choice between the others, and what most have.
    const CHOICE: i32 = 0xCA;
    const MAJORITY: i32 = 0xE8;
    let [a, b, c, d, e, f, g, h] = *state;
    let input = _mm512_add_epi32(words[N], splat(constants[N]));
    let choice = _mm512_ternarylogic_epi32::<CHOICE>(e, f, g);
    let majority = _mm512_ternarylogic_epi32::<MAJORITY>(a, b, c);
    let sum1 = xor(ror::<6>(e), ror::<11>(e), ror::<25>(e));
    let sum0 = xor(ror::<2>(a), ror::<13>(a), ror::<22>(a));
    let first = _mm512_add_epi32(_mm512_add_epi32(h, input), _mm512_add_epi32(choice, sum1));
    let second = _mm512_add_epi32(sum0, majority);
    *state = [_mm512_add_epi32(first, second), a, b, c, _mm512_add_epi32(d, first), e, f, g];
}

#[target_feature(enable = "avx512f")]
fn ror<const BITS: i32>(word: __m512i) -> __m512i {
    _mm512_ror_epi32::<BITS>(word)
}

#[target_feature(enable = "avx512f")]
fn xor(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0x96>(a, b, c)
}
