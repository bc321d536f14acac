//! Evidence: a hostile report, certificate table or device answer is refused or understood.
#![no_main]

use evidence::certificates::Table;
use evidence::report::Report;
use evidence::sim::Answer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(report) = Report::parse(bytes) {
        let _ = (report.product(), report.cpuid(), report.key_info().signing_key());
        assert!(report.policy().words().count() <= 64);
    }
    let _ = Table::parse(bytes);
    if let Ok(answer) = Answer::parse(bytes) {
        assert!(answer.encode().is_ok());
    }
});
