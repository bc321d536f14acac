//! SHA-256 of the kernel (FIPS 180-4), by the processor's SHA extensions where it has them.
//!
//! The hash crate finds the extensions by `CPUID`, which a confidential guest cannot execute before Linux has its
//! exception handlers. So the program builds that crate without detection, for processors that lack the extensions,
//! and brings their use itself: hashing is most of the stub's time.
#![allow(unsafe_code, reason = "the instructions are there on some processors only")]

use core::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_loadu_si128, _mm_set_epi64x, _mm_sha256msg1_epu32,
    _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8, _mm_shuffle_epi32, _mm_storeu_si128,
};

use sha2::block_api::compress256;

/// How blocks are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// In plain instructions.
    Portable,
    /// With the SHA extensions, by someone who promised that they are there.
    Extensions(Extensions),
}

/// The promise that this processor has the SHA extensions, SSSE3 and SSE4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extensions(());

impl Extensions {
    /// # Safety
    /// The processor must have the SHA extensions, SSSE3 and SSE4.1.
    #[must_use]
    pub const unsafe fn promised() -> Self {
        Self(())
    }
}

type Block = [u8; 64];

const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The hash of `bytes`.
#[must_use]
pub fn digest(engine: Engine, bytes: &[u8]) -> [u8; 32] {
    let mut state = INITIAL;
    let (blocks, rest) = bytes.as_chunks::<64>();
    compress(engine, &mut state, blocks);

    let mut tail = [[0; 64]; 2];
    let flat = tail.as_flattened_mut();
    for (to, from) in flat.iter_mut().zip(rest.iter().chain(&[0x80])) {
        *to = *from;
    }
    let bits = u64::try_from(bytes.len()).unwrap_or(u64::MAX).wrapping_mul(8);
    let used = if rest.len() < 56 { 1 } else { 2 };
    if let Some(length) = flat.get_mut(..used * 64).and_then(|used| used.last_chunk_mut()) {
        *length = bits.to_be_bytes();
    }
    compress(engine, &mut state, tail.get(..used).unwrap_or(&[]));

    let mut digest = [0; 32];
    for (to, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(state) {
        *to = word.to_be_bytes();
    }
    digest
}

fn compress(engine: Engine, state: &mut [u32; 8], blocks: &[Block]) {
    match engine {
        Engine::Portable => compress256(state, blocks),
        // SAFETY: whoever made the promise keeps it.
        Engine::Extensions(_) => unsafe { compress_with_extensions(state, blocks) },
    }
}

const ROUND_CONSTANTS: [[u32; 4]; 16] = [
    [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
    [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
    [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
    [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
    [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
    [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
    [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
    [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
    [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
    [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
    [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
    [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
    [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
    [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
    [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
    [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
];

/// Four words as a register, lowest first.
#[target_feature(enable = "sse2")]
fn load(words: &[u32; 4]) -> __m128i {
    // SAFETY: 16 bytes are there to read; any alignment will do.
    unsafe { _mm_loadu_si128(words.as_ptr().cast()) }
}

/// The words of a block, which are big-endian.
#[target_feature(enable = "sse2,ssse3")]
fn message(block: &Block) -> [__m128i; 4] {
    let little_endian = _mm_set_epi64x(0x0C0D_0E0F_0809_0A0B, 0x0405_0607_0001_0203);
    let quarters: [[u32; 4]; 4] = zerocopy::transmute!(*block);
    quarters.map(|quarter| _mm_shuffle_epi8(load(&quarter), little_endian))
}

/// Hashes blocks as the extensions want it: the state in two registers, (A, B, E, F) and (C, D, G, H), four rounds
/// and four words of message schedule at a time.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn compress_with_extensions(state: &mut [u32; 8], blocks: &[Block]) {
    let [a, b, c, d, e, f, g, h] = *state;
    let mut abef = load(&[f, e, b, a]);
    let mut cdgh = load(&[h, g, d, c]);
    for block in blocks {
        let (abef_before, cdgh_before) = (abef, cdgh);
        let mut window = message(block);
        for constants in &ROUND_CONSTANTS {
            let [w0, w1, w2, w3] = window;
            let input = _mm_add_epi32(w0, load(constants));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, input);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(input, 0x0E));
            // The schedule runs four groups ahead; what it makes in the last four is not used.
            let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4));
            window = [w1, w2, w3, _mm_sha256msg2_epu32(sum, w3)];
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    let [f, e, b, a] = store(abef);
    let [h, g, d, c] = store(cdgh);
    *state = [a, b, c, d, e, f, g, h];
}

#[target_feature(enable = "sse2")]
fn store(register: __m128i) -> [u32; 4] {
    let mut words = [0; 4];
    // SAFETY: 16 bytes are there to write; any alignment will do.
    unsafe { _mm_storeu_si128(words.as_mut_ptr().cast(), register) };
    words
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use sha2::{Digest as _, Sha256};

    use super::*;

    fn engines() -> Vec<Engine> {
        let mut engines = std::vec![Engine::Portable];
        let there = std::is_x86_feature_detected!("sha")
            && std::is_x86_feature_detected!("ssse3")
            && std::is_x86_feature_detected!("sse4.1");
        if there {
            // SAFETY: just detected.
            engines.push(Engine::Extensions(unsafe { Extensions::promised() }));
        }
        engines
    }

    #[test]
    fn every_length_hashes_as_the_crate_has_it() {
        let bytes: Vec<u8> = (0..1000u32).map(|index| (index * 7 % 251).to_le_bytes()[0]).collect();
        for engine in engines() {
            for length in 0..bytes.len() {
                let expected: [u8; 32] = Sha256::digest(&bytes[..length]).into();
                assert_eq!(digest(engine, &bytes[..length]), expected, "{engine:?} {length}");
            }
        }
    }
}
