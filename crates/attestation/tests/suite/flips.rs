//! One flipped bit, in each field and in each byte of a report.

use crate::support::{check, demands, failures, good};

/// Offset, mask, and the check that must notice beside the signature's.
const FIELDS: [(&str, usize, u8, &str); 40] = [
    ("version", 0x000, 0x08, "report version"),
    ("guest SVN", 0x004, 0x01, "guest SVN"),
    ("policy, ABI", 0x008, 0x01, "policy"),
    ("policy, SMT", 0x00a, 0x01, "policy SMT"),
    ("policy, reserved", 0x00a, 0x02, "policy reserved bits"),
    ("policy, migration", 0x00a, 0x04, "policy migration"),
    ("policy, debug", 0x00a, 0x08, "policy debug"),
    ("policy, single socket", 0x00a, 0x10, "policy single socket"),
    ("family ID", 0x010, 0x01, "report signature"),
    ("image ID", 0x020, 0x01, "report signature"),
    ("VMPL", 0x030, 0x01, "VMPL"),
    ("signature algorithm", 0x034, 0x02, "signature algorithm"),
    ("current TCB", 0x038, 0x02, "current TCB"),
    ("platform info", 0x040, 0x01, "platform info"),
    ("key info, author key", 0x048, 0x01, "author key digest"),
    ("key info, masked chip key", 0x048, 0x02, "signing key"),
    ("key info, signing key", 0x048, 0x04, "certificates"),
    ("key info, reserved", 0x049, 0x01, "report format"),
    ("reserved at 0x4c", 0x04c, 0x01, "report format"),
    ("report data", 0x08f, 0x80, "report data"),
    ("measurement", 0x090, 0x01, "measurement"),
    ("host data", 0x0df, 0x80, "host data"),
    ("ID key digest", 0x0e0, 0x01, "ID key digest"),
    ("author key digest", 0x110, 0x01, "author key digest"),
    ("report ID", 0x140, 0x01, "report signature"),
    ("migration agent's report ID", 0x160, 0x01, "report signature"),
    ("reported TCB", 0x180, 0x02, "endorsed TCB"),
    ("CPUID family", 0x188, 0x01, "product line"),
    ("CPUID model", 0x189, 0x10, "endorsed product"),
    ("CPUID stepping", 0x18a, 0x01, "report signature"),
    ("reserved at 0x18b", 0x18b, 0x01, "report format"),
    ("chip ID", 0x1a0, 0x01, "chip"),
    ("committed TCB", 0x1e0, 0x02, "committed TCB"),
    ("current version", 0x1e8, 0x01, "report signature"),
    ("committed version", 0x1ec, 0x01, "report signature"),
    ("launch TCB", 0x1f0, 0x02, "launch TCB"),
    ("mitigation vector, not in version 3", 0x1f8, 0x01, "report format"),
    ("signature, R", 0x2a0, 0x01, "report signature"),
    ("signature, S", 0x2e8, 0x01, "report signature"),
    ("signature, reserved", 0x330, 0x01, "report format"),
];

#[test]
fn each_field_has_a_check_that_notices() {
    let (report, table) = good();
    for (field, offset, mask, expected) in FIELDS {
        let mut flipped = report.clone();
        flipped[offset] ^= mask;
        let verdict = check(&flipped, &table, &demands());
        assert!(!verdict.accepted() && verdict.failed(expected), "{field}: {verdict}");
        let unparsed =
            expected.starts_with("report ") && expected != "report signature" && expected != "report data";
        let unsigned = ["signing key", "certificates"].contains(&expected);
        assert!(unparsed || unsigned || verdict.failed("report signature"), "{field}: {verdict}");
    }
}

#[test]
fn each_byte_counts() {
    let (report, table) = good();
    for offset in 0..report.len() {
        let mut flipped = report.clone();
        flipped[offset] ^= 1 << (offset % 8);
        let verdict = check(&flipped, &table, &demands());
        assert!(!verdict.accepted(), "byte {offset:#x}");
        assert!(!failures(&verdict).is_empty());
    }
}

#[test]
fn each_certificate_byte_counts() {
    let (report, table) = good();
    for offset in (0..table.len()).step_by(5) {
        let mut flipped = table.clone();
        flipped[offset] ^= 1 << (offset % 8);
        if let Ok(certificates) = attestation::snp::Certificates::from_table(&flipped) {
            let verdict = attestation::snp::verify(&report, &certificates, &demands());
            assert!(!verdict.accepted(), "byte {offset:#x} of the table");
        }
    }
}
