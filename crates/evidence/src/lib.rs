//! Attestation evidence, as bytes: the SEV-SNP attestation report, the table of certificates that travels with it, and
//! the protocol of the simulated report device.
//!
//! Pure and small, because it is linked into the VMM and the agent: nothing here checks a signature. Every input is
//! taken for hostile: parsing is bounded, allocates nothing for what it refuses, and never panics.
#![forbid(unsafe_code)]

pub mod certificates;
pub mod oid;
pub mod policy;
pub mod report;
pub mod sim;
pub mod tcb;

use sha2::{Digest, Sha512};

/// Most bytes of a nonce in a request for evidence.
pub const NONCE_MAX: usize = 64;

/// Separates report data made for a nonce from report data made for anything else.
const REPORT_DATA_DOMAIN: &[u8] = b"uvm.report.v1\0";

/// REPORT_DATA of evidence that was asked for with `nonce`: SHA-512 of a domain separator and the nonce.
///
/// The separator keeps whoever may ask for evidence from having the guest vouch for a key: report data that binds a
/// key is made under another separator.
#[must_use]
pub fn report_data(nonce: &[u8]) -> [u8; 64] {
    let mut hash = Sha512::new();
    hash.update(REPORT_DATA_DOMAIN);
    hash.update(nonce);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_data_is_not_the_bare_hash_of_the_nonce() {
        let bare: [u8; 64] = Sha512::digest(b"nonce").into();
        assert_ne!(report_data(b"nonce"), bare);
        assert_ne!(report_data(b"nonce"), report_data(b"nonc"));
    }
}
