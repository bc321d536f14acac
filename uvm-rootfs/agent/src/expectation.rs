//! What the guest was measured to expect of the machine that it runs on.
//!
//! The command line is part of the launch measurement, so its words are the owner's: `uvm.tee=` names the
//! isolation, `uvm.snp_policy=` the guest policy that an SEV-SNP launch (or the simulation of one) must have,
//! `uvm.on_corruption=` what becomes of a guest whose layers do not match their hash trees.
//! Nothing is probed: a host decides what a probe finds. A word that is missing, given twice, or that has no
//! meaning for the isolation is an error, and an agent without an expectation does not serve.

use agent_protocol::tee::{Tee, UnknownTee};
use evidence::policy::GuestPolicy;
use thiserror::Error;

const TEE: &str = "uvm.tee";
const SNP_POLICY: &str = "uvm.snp_policy";
const ON_CORRUPTION: &str = "uvm.on_corruption";

/// The isolation that this guest was measured for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expectation {
    /// None: an ordinary virtual machine.
    None,
    /// A simulated SEV-SNP launch with this guest policy.
    Sim(GuestPolicy),
    /// An SEV-SNP launch with this guest policy.
    Snp(GuestPolicy),
    /// A TDX launch.
    Tdx,
}

/// What happens when a block of a layer does not match the layer's root hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnCorruption {
    /// The read fails (EIO), and the host is told.
    #[default]
    Fail,
    /// The guest panics.
    Panic,
}

impl OnCorruption {
    /// Reads a kernel command line. Without the word, the read fails.
    ///
    /// # Errors
    /// If the word is given twice, or with a value other than `eio` and `panic`.
    pub fn from_command_line(line: &str) -> Result<Self, ExpectationError> {
        match values(line, ON_CORRUPTION)[..] {
            [] | ["eio"] => Ok(Self::Fail),
            ["panic"] => Ok(Self::Panic),
            [other] => Err(ExpectationError::OnCorruption(other.chars().take(32).collect())),
            ref all => Err(ExpectationError::Count { word: ON_CORRUPTION, found: all.len() }),
        }
    }
}

/// Why a command line says nothing that could be relied on.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ExpectationError {
    /// A word that is not there as often as it may be.
    #[error("measured command line: expected {word}= once, found it {found} times")]
    Count {
        /// Which.
        word: &'static str,
        /// How often it is there.
        found: usize,
    },
    /// A policy for an isolation that has none.
    #[error("measured command line: {SNP_POLICY}= means nothing with {TEE}={0}")]
    Stray(Tee),
    /// No known isolation.
    #[error("measured command line: {TEE}: {0}")]
    Tee(#[from] UnknownTee),
    /// No number.
    #[error("measured command line: {SNP_POLICY}: expected 0x and up to 16 hexadecimal digits, found {0:?}")]
    Policy(String),
    /// No known reaction.
    #[error("measured command line: {ON_CORRUPTION}: expected eio or panic, found {0:?}")]
    OnCorruption(String),
}

impl Expectation {
    /// Reads a kernel command line.
    ///
    /// # Errors
    /// If it does not say, exactly once, what to expect.
    pub fn from_command_line(line: &str) -> Result<Self, ExpectationError> {
        let tee: Tee = match values(line, TEE)[..] {
            [name] => name.parse()?,
            ref other => return Err(ExpectationError::Count { word: TEE, found: other.len() }),
        };
        let policies = values(line, SNP_POLICY);
        match tee {
            Tee::None | Tee::Tdx if !policies.is_empty() => Err(ExpectationError::Stray(tee)),
            Tee::None => Ok(Self::None),
            Tee::Tdx => Ok(Self::Tdx),
            Tee::Sim => policy(&policies).map(Self::Sim),
            Tee::Snp => policy(&policies).map(Self::Snp),
        }
    }

    /// The name of the isolation.
    #[must_use]
    pub fn tee(self) -> Tee {
        match self {
            Self::None => Tee::None,
            Self::Sim(_) => Tee::Sim,
            Self::Snp(_) => Tee::Snp,
            Self::Tdx => Tee::Tdx,
        }
    }
}

/// The values of all words `key=value`, and an empty one for a bare `key`.
fn values<'a>(line: &'a str, key: &str) -> Vec<&'a str> {
    let words = line.split_ascii_whitespace().filter_map(|word| word.strip_prefix(key));
    words.filter_map(|rest| if rest.is_empty() { Some("") } else { rest.strip_prefix('=') }).collect()
}

fn policy(found: &[&str]) -> Result<GuestPolicy, ExpectationError> {
    let [text] = found else {
        return Err(ExpectationError::Count { word: SNP_POLICY, found: found.len() });
    };
    let digits = text.strip_prefix("0x").filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let bits = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    bits.map(GuestPolicy).ok_or_else(|| ExpectationError::Policy(text.chars().take(32).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measured_words_decide() {
        let read = |line| Expectation::from_command_line(line).unwrap();
        let policy = GuestPolicy(0x3_0000);
        assert_eq!(read("panic=-1 uvm.tee=none root=/dev/dm-0\n"), Expectation::None);
        assert_eq!(read("uvm.tee=sim uvm.snp_policy=0x30000"), Expectation::Sim(policy));
        assert_eq!(read("uvm.snp_policy=0x30000 a uvm.tee=snp"), Expectation::Snp(policy));
        assert_eq!(read("uvm.tee=tdx uvm.teeth=2"), Expectation::Tdx);
    }

    #[test]
    fn without_one_clear_word_there_is_no_expectation() {
        let cases = [
            ("", "uvm.tee= once, found it 0 times"),
            ("uvm.tee=snp uvm.tee=none uvm.snp_policy=0x30000", "uvm.tee= once, found it 2 times"),
            ("uvm.tee", "found \"\""),
            ("uvm.tee=SNP", "found \"SNP\""),
            ("uvm.tee=snp", "uvm.snp_policy= once, found it 0 times"),
            ("uvm.tee=sim uvm.snp_policy=0x1 uvm.snp_policy=0x1", "uvm.snp_policy= once, found it 2 times"),
            ("uvm.tee=none uvm.snp_policy=0x30000", "means nothing with uvm.tee=none"),
            ("uvm.tee=tdx uvm.snp_policy=0x30000", "means nothing with uvm.tee=tdx"),
            ("uvm.tee=snp uvm.snp_policy=30000", "found \"30000\""),
            ("uvm.tee=snp uvm.snp_policy=0x", "found \"0x\""),
            ("uvm.tee=snp uvm.snp_policy=0x+1", "found \"0x+1\""),
            ("uvm.tee=snp uvm.snp_policy=0x10000000000000000", "found \"0x1"),
        ];
        for (line, message) in cases {
            let error = Expectation::from_command_line(line).unwrap_err().to_string();
            assert!(error.contains(message), "{line:?}: {error}");
        }
    }

    #[test]
    fn a_corrupt_layer_fails_reads_unless_the_owner_wants_a_panic() {
        let read = OnCorruption::from_command_line;
        assert_eq!(read("uvm.tee=none uvm.on_corruptions=panic"), Ok(OnCorruption::Fail));
        assert_eq!(read("uvm.on_corruption=eio uvm.tee=none\n"), Ok(OnCorruption::Fail));
        assert_eq!(read("uvm.tee=none uvm.on_corruption=panic"), Ok(OnCorruption::Panic));
        let cases = [
            ("uvm.on_corruption=ignore", "expected eio or panic, found \"ignore\""),
            ("uvm.on_corruption", "found \"\""),
            ("uvm.on_corruption=", "found \"\""),
            ("uvm.on_corruption=eio uvm.on_corruption=eio", "once, found it 2 times"),
        ];
        for (line, message) in cases {
            let error = read(line).unwrap_err().to_string();
            assert!(error.contains(message), "{line:?}: {error}");
        }
    }
}
