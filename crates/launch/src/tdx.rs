//! The launch of a TD: its build-time measurement, MRTD (Intel TDX module base architecture specification,
//! section 12.2; TDX module ABI, `TDH.MEM.PAGE.ADD` and `TDH.MR.EXTEND`).
//!
//! Every private page adds a 128-byte record; a measured page adds 16 more, each followed by the 256 bytes that
//! it covers.

use sha2::{Digest, Sha384};

use crate::digest::LaunchDigest;
use crate::image::{Image, PageKind};

/// Bytes of a record.
const RECORD_BYTES: usize = 128;
/// Bytes that one `MR.EXTEND` covers.
const CHUNK_BYTES: usize = 256;

/// The MRTD of `image`. The number of virtual CPUs has no part in it.
#[must_use]
pub fn mrtd(image: &Image) -> LaunchDigest {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut hash = Sha384::new();
    for page in image.pages.iter().filter(|page| page.kind != PageKind::Shared) {
        hash.update(record(b"MEM.PAGE.ADD", page.gpa));
        if page.kind == PageKind::Measured {
            let data = if page.data.is_empty() { &ZEROS[..] } else { &page.data };
            for (gpa, chunk) in (page.gpa..).step_by(CHUNK_BYTES).zip(data.chunks(CHUNK_BYTES)) {
                hash.update(record(b"MR.EXTEND", gpa));
                hash.update(chunk);
            }
        }
    }
    LaunchDigest(hash.finalize().into())
}

fn record(operation: &[u8], gpa: u64) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    record[..operation.len()].copy_from_slice(operation);
    record[16..24].copy_from_slice(&gpa.to_le_bytes());
    record
}
