//! SHA-256 of many blocks at a time (FIPS 180-4), each behind the salt.
//!
//! Within one message every round waits for the one before it, so that a processor which hashes one block has
//! most of its units idle. The blocks of a device are independent of one another:
//!
//! - [`avx512`] hashes sixteen, one in each lane of its vectors;
//! - [`sha_ni`] hashes two, the instructions of the one between those of the other;
//! - the hash crate hashes what is left, and everything on other processors.
//!
//! The order is that of their speed on a processor that has all of them: on Zen 4, 3.0, 2.5 and 1.7 GB/s a core.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod sha_ni;

use sha2::{Digest as _, Sha256};

use super::{DIGEST_SIZE, SALT};
use crate::BLOCK_SIZE;

/// What is hashed.
type Block = [u8; BLOCK_SIZE];
/// Its hash.
type Digest = [u8; DIGEST_SIZE];

/// Hashes blocks from the first on, as many as it is made for, and says how many.
type Engine = fn(&[Block], &mut [Digest]) -> usize;

/// Fastest first; the last one leaves nothing.
const ENGINES: &[Engine] = &[
    #[cfg(target_arch = "x86_64")]
    avx512::hash_groups,
    #[cfg(target_arch = "x86_64")]
    sha_ni::hash_pairs,
    hash_each,
];

/// Writes the digests of whole blocks, one behind the other, to `digests`, which has 32 bytes for each block.
pub fn hash_blocks(data: &[u8], digests: &mut [u8]) {
    let (mut blocks, _) = data.as_chunks();
    let (mut digests, _) = digests.as_chunks_mut();
    for engine in ENGINES {
        let hashed = engine(blocks, digests);
        blocks = &blocks[hashed..];
        digests = &mut digests[hashed..];
    }
}

/// Hashes one block after another.
fn hash_each(blocks: &[Block], digests: &mut [Digest]) -> usize {
    for (block, digest) in blocks.iter().zip(&mut *digests) {
        *digest = Sha256::new().chain_update(SALT).chain_update(block).finalize().into();
    }
    blocks.len().min(digests.len())
}

/// State before the first block of a message.
#[cfg(target_arch = "x86_64")]
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

#[cfg(target_arch = "x86_64")]
const ROUND_CONSTANTS: [[u32; 16]; 4] = [
    [
        0x428a_2f98,
        0x7137_4491,
        0xb5c0_fbcf,
        0xe9b5_dba5,
        0x3956_c25b,
        0x59f1_11f1,
        0x923f_82a4,
        0xab1c_5ed5,
        0xd807_aa98,
        0x1283_5b01,
        0x2431_85be,
        0x550c_7dc3,
        0x72be_5d74,
        0x80de_b1fe,
        0x9bdc_06a7,
        0xc19b_f174,
    ],
    [
        0xe49b_69c1,
        0xefbe_4786,
        0x0fc1_9dc6,
        0x240c_a1cc,
        0x2de9_2c6f,
        0x4a74_84aa,
        0x5cb0_a9dc,
        0x76f9_88da,
        0x983e_5152,
        0xa831_c66d,
        0xb003_27c8,
        0xbf59_7fc7,
        0xc6e0_0bf3,
        0xd5a7_9147,
        0x06ca_6351,
        0x1429_2967,
    ],
    [
        0x27b7_0a85,
        0x2e1b_2138,
        0x4d2c_6dfc,
        0x5338_0d13,
        0x650a_7354,
        0x766a_0abb,
        0x81c2_c92e,
        0x9272_2c85,
        0xa2bf_e8a1,
        0xa81a_664b,
        0xc24b_8b70,
        0xc76c_51a3,
        0xd192_e819,
        0xd699_0624,
        0xf40e_3585,
        0x106a_a070,
    ],
    [
        0x19a4_c116,
        0x1e37_6c08,
        0x2748_774c,
        0x34b0_bcb5,
        0x391c_0cb3,
        0x4ed8_aa4a,
        0x5b9c_ca4f,
        0x682e_6ff3,
        0x748f_82ee,
        0x78a5_636f,
        0x84c8_7814,
        0x8cc7_0208,
        0x90be_fffa,
        0xa450_6ceb,
        0xbef9_a3f7,
        0xc671_78f2,
    ],
];

/// What follows salt and block in the last 64 bytes that are hashed, as words: one bit, zeros, the length of
/// both in bits.
#[cfg(target_arch = "x86_64")]
const PADDING: [u32; 8] = [1 << 31, 0, 0, 0, 0, 0, 0, 8 * (32 + 4096)];
#[cfg(target_arch = "x86_64")]
const _: () = assert!(SALT.len() == 32 && BLOCK_SIZE == 4096);

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks that differ from one another and from byte to byte.
    fn blocks(count: usize) -> Vec<Block> {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut byte = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()[0]
        };
        (0..count).map(|_| std::array::from_fn(|_| byte())).collect()
    }

    #[test]
    fn every_engine_hashes_as_the_crate_does() {
        let blocks = blocks(50);
        let mut expected = vec![[0; DIGEST_SIZE]; blocks.len()];
        hash_each(&blocks, &mut expected);
        for (number, engine) in ENGINES.iter().enumerate() {
            for count in 0..=blocks.len() {
                let mut found = vec![[0; DIGEST_SIZE]; count];
                let hashed = engine(&blocks[..count], &mut found);
                assert_eq!(found[..hashed], expected[..hashed], "engine {number}, {count} blocks");
                assert!(found[hashed..].iter().all(|digest| *digest == [0; DIGEST_SIZE]), "engine {number}");
            }
        }
    }

    #[test]
    fn any_number_of_blocks_is_hashed_from_any_address() {
        let blocks = blocks(49);
        let mut expected = vec![[0; DIGEST_SIZE]; blocks.len()];
        hash_each(&blocks, &mut expected);
        for shift in [0, 1, 31] {
            let mut data = vec![0; shift];
            data.extend_from_slice(blocks.as_flattened());
            for count in 0..=blocks.len() {
                let mut found = vec![0; count * DIGEST_SIZE];
                hash_blocks(&data[shift..shift + count * BLOCK_SIZE], &mut found);
                assert_eq!(found, expected[..count].as_flattened(), "{count} blocks, {shift} bytes on");
            }
        }
    }
}
