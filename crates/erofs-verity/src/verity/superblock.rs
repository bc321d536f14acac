//! The superblock that veritysetup and containerd put between data and hash tree.
//!
//! The kernel never reads it, and it is outside the root digest: a guest takes its parameters from what it
//! has measured. It tells tools on the host what the file is.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::SALT;
use crate::{BLOCK_BYTES, BLOCK_SIZE};

/// Bytes of the superblock itself; a whole block is reserved for it.
pub const SUPERBLOCK_SIZE: usize = 512;

const SIGNATURE: [u8; 8] = *b"verity\0\0";
const VERSION: u32 = 1;
/// The Linux format; 0 was Chromium OS's.
const HASH_TYPE: u32 = 1;
const ALGORITHM: &[u8; 6] = b"sha256";
const BLOCK: u32 = 4096;
/// The kernel counts sectors of 512 bytes in 64 bits, signed where they are file offsets.
const MAX_DATA_BLOCKS: u64 = i64::MAX.cast_unsigned() / BLOCK_BYTES;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Raw {
    signature: [u8; 8],
    version: U32,
    hash_type: U32,
    uuid: [u8; 16],
    algorithm: [u8; 32],
    data_block_size: U32,
    hash_block_size: U32,
    data_blocks: U64,
    salt_size: U16,
    padding: [u8; 6],
    salt: [u8; 256],
    padding2: [u8; 168],
}
const _: () = assert!(size_of::<Raw>() == SUPERBLOCK_SIZE);

/// What a superblock says that is not the same for all of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Data blocks of 4096 bytes.
    pub data_blocks: u64,
}

/// Why a superblock is refused.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    /// Too few bytes.
    #[error("verity superblock: expected {SUPERBLOCK_SIZE} bytes, found {0}")]
    Truncated(usize),
    /// A field has another value than the one form that is made here.
    #[error("verity superblock: {field}: expected {expected}, found {found}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What it has to be.
        expected: String,
        /// What it is.
        found: String,
    },
}

impl Superblock {
    /// The superblock as the block that it takes on the device. Its UUID is zero.
    #[must_use]
    pub fn to_block(self) -> Vec<u8> {
        let mut raw = Raw {
            signature: SIGNATURE,
            version: U32::new(VERSION),
            hash_type: U32::new(HASH_TYPE),
            uuid: [0; 16],
            algorithm: [0; 32],
            data_block_size: U32::new(BLOCK),
            hash_block_size: U32::new(BLOCK),
            data_blocks: U64::new(self.data_blocks),
            salt_size: U16::new(32),
            padding: [0; 6],
            salt: [0; 256],
            padding2: [0; 168],
        };
        raw.algorithm[..ALGORITHM.len()].copy_from_slice(ALGORITHM);
        raw.salt[..SALT.len()].copy_from_slice(&SALT);
        let mut block = raw.as_bytes().to_vec();
        block.resize(BLOCK_SIZE, 0);
        block
    }

    /// Reads a superblock from the beginning of `bytes`. The UUID may be any.
    ///
    /// # Errors
    /// When the bytes are too few or describe another form of hash tree.
    pub fn parse(bytes: &[u8]) -> Result<Self, SuperblockError> {
        let (raw, _) = Raw::ref_from_prefix(bytes).map_err(|_| SuperblockError::Truncated(bytes.len()))?;
        expect("signature", &SIGNATURE, &raw.signature)?;
        expect("version", &VERSION, &raw.version.get())?;
        expect("hash type", &HASH_TYPE, &raw.hash_type.get())?;
        let mut algorithm = [0; 32];
        algorithm[..ALGORITHM.len()].copy_from_slice(ALGORITHM);
        expect("algorithm", &algorithm, &raw.algorithm)?;
        expect("data block size", &BLOCK, &raw.data_block_size.get())?;
        expect("hash block size", &BLOCK, &raw.hash_block_size.get())?;
        expect("salt size", &SALT.len(), &usize::from(raw.salt_size.get()))?;
        expect("salt", SALT.as_slice(), &raw.salt[..SALT.len()])?;
        let data_blocks = raw.data_blocks.get();
        if (1..=MAX_DATA_BLOCKS).contains(&data_blocks) {
            return Ok(Self { data_blocks });
        }
        Err(SuperblockError::Field {
            field: "data blocks",
            expected: format!("1 to {MAX_DATA_BLOCKS}"),
            found: data_blocks.to_string(),
        })
    }
}

fn expect<T>(field: &'static str, expected: &T, found: &T) -> Result<(), SuperblockError>
where
    T: PartialEq + std::fmt::Debug + ?Sized,
{
    if expected == found {
        return Ok(());
    }
    Err(SuperblockError::Field { field, expected: format!("{expected:?}"), found: format!("{found:?}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let superblock = Superblock { data_blocks: 7 };
        assert_eq!(Superblock::parse(&superblock.to_block()).unwrap(), superblock);
    }

    #[test]
    fn another_form_is_refused_by_the_field_that_differs() {
        let good = Superblock { data_blocks: 7 }.to_block();
        assert!(matches!(Superblock::parse(&good[..511]), Err(SuperblockError::Truncated(511))));
        for (offset, field) in [
            (0, "signature"),
            (8, "version"),
            (12, "hash type"),
            (32, "algorithm"),
            (64, "data block size"),
            (68, "hash block size"),
            (80, "salt size"),
            (88, "salt"),
            (79, "data blocks"),
        ] {
            let mut bad = good.clone();
            bad[offset] ^= 0x80;
            match Superblock::parse(&bad) {
                Err(SuperblockError::Field { field: found, .. }) => assert_eq!(found, field),
                other => panic!("byte {offset}: {other:?}"),
            }
        }
        assert!(Superblock::parse(&Superblock { data_blocks: 0 }.to_block()).is_err());
    }
}
