//! Two blocks at a time, with the SHA extensions.
//!
//! As the extensions want it, a block's state is in two registers, (A, B, E, F) and (C, D, G, H), and goes
//! forward four rounds at a time, with four words of the message schedule in a register.
#![allow(unsafe_code, reason = "the instructions are there on some processors only")]

use core::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_set_epi64x, _mm_setzero_si128, _mm_sha256msg1_epu32,
    _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8, _mm_shuffle_epi32,
};

use zerocopy::transmute;

use super::{Block, Digest, INITIAL, PADDING, ROUND_CONSTANTS};

/// Words of 64 bytes, or of half as many.
type Words = [__m128i; 4];
type Half = [__m128i; 2];

/// Hashes the first multiple of two blocks; none if the processor lacks the SHA extensions.
pub(super) fn hash_pairs(blocks: &[Block], digests: &mut [Digest]) -> usize {
    let is_there = is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1");
    if !is_there {
        return 0;
    }
    let (pairs, _) = blocks.as_chunks();
    let (digests, _) = digests.as_chunks_mut();
    for (blocks, digests) in pairs.iter().zip(&mut *digests) {
        // SAFETY: the processor has what the function is compiled for, as just detected.
        *digests = unsafe { hash_pair(blocks) };
    }
    pairs.len().min(digests.len()) * 2
}

#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn hash_pair([first, second]: &[Block; 2]) -> [Digest; 2] {
    let [a, b, c, d, e, f, g, h] = INITIAL;
    let initial: Half = transmute!([[f, e, b, a], [h, g, d, c]]);
    let mut states = [initial; 2];
    // The salt is half as long as what is hashed at a time.
    let mut before = [[_mm_setzero_si128(); 2]; 2];
    let (first, _) = first.as_chunks::<64>();
    let (second, _) = second.as_chunks::<64>();
    for (first, second) in first.iter().zip(second) {
        let [[a0, a1, a2, a3], [b0, b1, b2, b3]] = [message(first), message(second)];
        let [[p0, p1], [q0, q1]] = before;
        compress(&mut states, [[p0, p1, a0, a1], [q0, q1, b0, b1]]);
        before = [[a2, a3], [b2, b3]];
    }
    let [last0, last1]: Half = transmute!(PADDING);
    compress(&mut states, before.map(|[word0, word1]| [word0, word1, last0, last1]));
    states.map(|state| {
        let [[f, e, b, a], [h, g, d, c]]: [[u32; 4]; 2] = transmute!(state);
        transmute!([a, b, c, d, e, f, g, h].map(u32::to_be_bytes))
    })
}

/// The words of 64 bytes.
#[target_feature(enable = "sse2,ssse3")]
fn message(bytes: &[u8; 64]) -> Words {
    let from_big_endian = _mm_set_epi64x(0x0C0D_0E0F_0809_0A0B, 0x0405_0607_0001_0203);
    let words: Words = transmute!(*bytes);
    words.map(|four| _mm_shuffle_epi8(four, from_big_endian))
}

/// Hashes the next 64 bytes of both.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn compress(states: &mut [Half; 2], mut words: [Words; 2]) {
    let before = *states;
    for (sixteen, constants) in ROUND_CONSTANTS.iter().enumerate() {
        let constants: Words = transmute!(*constants);
        for n in 0..4 {
            for (state, words) in states.iter_mut().zip(&mut words) {
                if sixteen > 0 {
                    words[n] = scheduled(words, n);
                }
                rounds(state, _mm_add_epi32(words[n], constants[n]));
            }
        }
    }
    for (state, before) in states.iter_mut().zip(before) {
        for (four, before) in state.iter_mut().zip(before) {
            *four = _mm_add_epi32(*four, before);
        }
    }
}

/// Four rounds.
#[target_feature(enable = "sha,sse2")]
fn rounds([abef, cdgh]: &mut Half, input: __m128i) {
    *cdgh = _mm_sha256rnds2_epu32(*cdgh, *abef, input);
    *abef = _mm_sha256rnds2_epu32(*abef, *cdgh, _mm_shuffle_epi32::<0x0E>(input));
}

/// The four words of the schedule that take the place of those of number `n`, which are the oldest.
#[target_feature(enable = "sha,sse2,ssse3")]
fn scheduled(words: &Words, n: usize) -> __m128i {
    let [oldest, old, late, latest] = [words[n], words[(n + 1) % 4], words[(n + 2) % 4], words[(n + 3) % 4]];
    let sum = _mm_add_epi32(_mm_sha256msg1_epu32(oldest, old), _mm_alignr_epi8::<4>(latest, late));
    _mm_sha256msg2_epu32(sum, latest)
}
