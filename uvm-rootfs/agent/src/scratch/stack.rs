//! The tables of the three devices, and the arithmetic of dm-integrity's layout.
//!
//! Follows the kernel's `admin-guide/device-mapper/{dm-integrity,dm-crypt}.rst`. dm-integrity divides its device
//! into a superblock, a journal, and then runs of tags each followed by the data that it is for; how much data
//! there is room for has to be told when the table is made.

use zeroize::Zeroizing;

use super::Disks;
use super::keys::{KEY_BYTES, Keys};
use crate::layers::dm::Target;

/// Bytes of a sector: what is encrypted, authenticated and written as one.
const SECTOR: u64 = 4096;
/// Tag of HMAC-SHA-256 and tweak of XTS, kept for each sector.
const TAG: u64 = 32 + 16;
/// Data between two runs of tags: dm-integrity's default.
const INTERLEAVE: u64 = 32768 * 512;
/// Tags of the sectors of one [`INTERLEAVE`], a whole number of sectors.
const TAG_RUN: u64 = INTERLEAVE / SECTOR * TAG;
const _: () = assert!(TAG_RUN.is_multiple_of(SECTOR));
const SUPERBLOCK: u64 = 4096;
/// The shortest journal that dm-integrity makes. It is written once, when the device is made, and never again:
/// mode `D` writes data and tags directly.
const JOURNAL: u64 = 264 * 512;
/// Superblock and journal: what has to be in guest memory.
pub const RESERVED: u64 = SUPERBLOCK + JOURNAL;

/// Bytes of data for which a disk of `bytes` bytes has room beside their tags: a multiple of 4096.
pub fn data_bytes(bytes: u64) -> Option<u64> {
    let runs = bytes / (TAG_RUN + INTERLEAVE);
    let rest = (bytes % (TAG_RUN + INTERLEAVE)).saturating_sub(TAG_RUN);
    Some(runs * INTERLEAVE + rest / SECTOR * SECTOR).filter(|data| *data > 0)
}

/// Guest memory in front, then the host's disk.
pub fn joined(disks: &Disks) -> Vec<Target> {
    vec![Target::linear(&disks.memory, 0, RESERVED), Target::linear(&disks.host, 0, disks.bytes)]
}

/// dm-integrity as the keeper of `bytes` bytes of data and their tags on `device`: it makes none and checks none.
pub fn integrity(device: &str, bytes: u64) -> Target {
    let interleave = INTERLEAVE / 512;
    let parameters = format!(
        "{device} 0 {TAG} D 4 block_size:{SECTOR} interleave_sectors:{interleave} journal_sectors:1 fix_padding"
    );
    Target::new("integrity", bytes, parameters.into())
}

/// dm-crypt over `bytes` bytes of `device`, whose tags it fills. The tweak is random for each write.
pub fn crypt(device: &str, bytes: u64, keys: &Keys) -> Target {
    const CIPHER: &str = "capi:authenc(hmac(sha256),xts(aes))-random";
    // With room for everything, so that no copy of the keys is left behind by growing.
    let mut parameters = Zeroizing::new(String::with_capacity(2 * KEY_BYTES + 256));
    parameters.push_str(CIPHER);
    parameters.push(' ');
    for byte in keys.iter() {
        for digit in [byte >> 4, byte & 15] {
            parameters.extend(char::from_digit(digit.into(), 16));
        }
    }
    let rest = format!(" 0 {device} 0 2 integrity:{TAG}:aead sector_size:{SECTOR}");
    parameters.push_str(&rest);
    Target::new("crypt", bytes, parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_those_of_the_documentation() {
        let disks = Disks { host: "254:32".to_owned(), memory: "1:0".to_owned(), bytes: 64 << 20 };
        let [memory, host] = <[Target; 2]>::try_from(joined(&disks)).unwrap();
        assert_eq!(memory.parts(), ("linear", 272, "1:0 0"));
        assert_eq!(host.parts(), ("linear", 131_072, "254:32 0"));
        let expected =
            "253:0 0 48 D 4 block_size:4096 interleave_sectors:32768 journal_sectors:1 fix_padding";
        assert_eq!(integrity("253:0", 8192).parts(), ("integrity", 16, expected));
        let mut keys = Keys::new(vec![0; KEY_BYTES]);
        keys[0] = 0x0f;
        keys[95] = 0xa0;
        let expected = format!(
            "capi:authenc(hmac(sha256),xts(aes))-random 0f{}a0 0 253:1 0 2 integrity:48:aead sector_size:4096",
            "00".repeat(94)
        );
        let target = crypt("253:1", 4096, &keys);
        assert_eq!(target.parts(), ("crypt", 8, expected.as_str()));
    }

    /// dm-integrity's own reckoning, from the last sector of data: run of tags, then data, and so on.
    fn needed(data: u64) -> u64 {
        let last = data - SECTOR;
        (last / INTERLEAVE + 1) * TAG_RUN + last + SECTOR
    }

    #[test]
    fn all_data_has_its_tags_and_no_sector_is_wasted() {
        for bytes in [32 << 20, (32 << 20) + 4096, TAG_RUN + INTERLEAVE, 1 << 30, (5 << 40) + 8192, 1 << 44] {
            let data = data_bytes(bytes).unwrap();
            assert!(needed(data) <= bytes, "{bytes}");
            assert!(needed(data + SECTOR) > bytes, "{bytes}: {data}");
        }
        for bytes in [0, TAG_RUN, TAG_RUN + SECTOR - 1] {
            assert_eq!(data_bytes(bytes), None, "{bytes}");
        }
    }
}
