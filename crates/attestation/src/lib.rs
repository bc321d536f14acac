//! Verification of attestation evidence.
//!
//! A verification is a list of named checks ([`Verdict`]). Each check compares what the evidence says with what the
//! caller demands, and the evidence is accepted only if none failed. There are no defaults: whoever does not care for
//! a property says so with [`Expect::Waived`], and the verdict repeats it.
//!
//! - [`snp`]: AMD SEV-SNP reports, genuine or simulated.
//! - [`tdx`]: Intel TDX quotes.
//! - [`endorsement`]: signed statements of a launch measurement (COSE_Sign1).
//! - [`id_block`]: SNP ID blocks, with which a launch itself is authorised.
//!
//! Pure: collateral, certificates and the time are the caller's. All input but the expectations is hostile: bounded,
//! and a refusal instead of a panic.
#![forbid(unsafe_code)]

mod check;
pub mod endorsement;
pub mod id_block;
pub mod keys;
pub mod snp;
pub mod tdx;
pub mod x509;

pub use check::{Check, Expect, Outcome, Verdict};
