//! Bytes from an attacker: refused, never a panic.

use attestation::{
    endorsement, id_block, keys,
    snp::Certificates,
    tdx::Collateral,
    x509::{CERTIFICATE_MAX, Certificate, RevocationList},
};
use proptest::prelude::*;
use sim_tee::chain::Authority;

use crate::support::{check, demands, good};

#[test]
fn sizes_are_bounded() {
    assert!(Certificate::from_der(&vec![0x30; CERTIFICATE_MAX + 1]).is_err());
    assert!(RevocationList::from_der(&vec![0x30; attestation::x509::CRL_MAX + 1]).is_err());
    assert!(Collateral::from_json(&vec![b' '; attestation::tdx::COLLATERAL_MAX + 1]).is_err());
    assert!(Certificate::from_pem(b"no certificate").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = Certificate::from_der(&bytes);
        let _ = Certificate::from_pem(&bytes);
        let _ = RevocationList::from_der(&bytes);
        let _ = Certificates::from_table(&bytes);
        let _ = Collateral::from_json(&bytes);
        let _ = id_block::IdBlock::parse(&bytes);
        let _ = keys::signature(&bytes);
        let _ = keys::private_key(&String::from_utf8_lossy(&bytes));
        let issuer = endorsement::Issuer { authority: [0; 32], key_usage: String::new() };
        let demands = endorsement::Expectations {
            now: attestation::Expect::Waived,
            issuer,
            feed: String::new(),
            min_svn: 0,
            measurement: attestation::Expect::Waived,
        };
        prop_assert!(!endorsement::verify(&bytes, &demands).0.accepted());
    }

    #[test]
    fn cut_and_changed_certificates_never_panic(at in 0usize..400, byte in any::<u8>(), cut in 0usize..300) {
        let root = Authority::root("SIMULATED ARK").unwrap();
        let mut der = root.certificate().to_vec();
        let original = certificate_at(&mut der, at, byte);
        if let Ok(parsed) = Certificate::from_der(&der) {
            let _ = (parsed.is_authority(), parsed.extended_key_usages(), parsed.has_p384_key());
            prop_assert!(original || parsed.check_issued_by(&parsed).is_err());
        }
        der.truncate(cut);
        prop_assert!(Certificate::from_der(&der).is_err());
    }

    #[test]
    fn changed_tables_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (report, mut table) = good();
        let at = at.index(table.len());
        let same = table[at] == byte;
        table[at] = byte;
        if Certificates::from_table(&table).is_ok() {
            let verdict = check(&report, &table, &demands());
            prop_assert!(same || !verdict.accepted());
        }
    }
}

/// Writes a byte; whether the certificate stays as it was.
fn certificate_at(der: &mut [u8], at: usize, byte: u8) -> bool {
    let at = at % der.len();
    let same = der[at] == byte;
    der[at] = byte;
    same
}
