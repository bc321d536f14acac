//! The differences that a comparison tells, and their words for people.

use std::fmt;

use serde::Serialize;

use crate::contents::{Policy, Run};

/// One difference between two launches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "difference", rename_all = "snake_case")]
pub enum Difference {
    /// Something about the launch, not the image.
    Circumstance {
        /// What.
        what: &'static str,
        /// On the first side.
        a: String,
        /// On the second.
        b: String,
    },
    /// The guest policy. It is in reports; the digest holds the copy in the configuration page.
    Policy {
        /// On the first side.
        a: Policy,
        /// On the second.
        b: Policy,
    },
    /// The kernel's command line.
    CommandLine {
        /// Changed words; none if only their order or spacing differs.
        words: Vec<WordChange>,
    },
    /// A field of the configuration page.
    Configuration {
        /// Which.
        field: String,
        /// On the first side.
        a: String,
        /// On the second.
        b: String,
    },
    /// A register of the first virtual CPU.
    Register {
        /// Which.
        register: String,
        /// On the first side.
        a: String,
        /// On the second.
        b: String,
    },
    /// Where a loader that imports save areas puts the first.
    SaveArea {
        /// On the first side.
        a: String,
        /// On the second.
        b: String,
    },
    /// The ID block, which is not measured: the processor compares it with the digest.
    IdBlock {
        /// Whether the first side has one.
        a: bool,
        /// Whether the second has.
        b: bool,
    },
    /// What the loader writes into parameter areas, which is not measured.
    Parameters,
    /// Pages that only the first side has.
    OnlyInA(Run),
    /// Pages that only the second side has.
    OnlyInB(Run),
    /// A page of the same content at another address.
    Moved {
        /// Address on the first side.
        a: String,
        /// Address on the second.
        b: String,
        /// What the page is for.
        role: &'static str,
    },
    /// A page that is loaded in another way.
    Kind {
        /// Guest-physical address.
        gpa: String,
        /// What the page is for.
        role: &'static str,
        /// On the first side.
        a: String,
        /// On the second.
        b: String,
    },
    /// A measured page of other content.
    Bytes {
        /// Guest-physical address of the page.
        gpa: String,
        /// What the page is for.
        role: &'static str,
        /// Number of bytes that differ.
        differing: usize,
        /// Offset of the first of them.
        first: usize,
        /// Bytes from there on the first side, in hexadecimal.
        a: String,
        /// The same on the second.
        b: String,
    },
    /// More measured pages of other content than are listed.
    MoreBytes {
        /// How many.
        pages: usize,
    },
    /// Shared pages, which are not measured.
    Shared {
        /// How many differ, or are on one side only.
        pages: usize,
    },
    /// Pages that both sides have are imported in another order.
    Order {
        /// Number of pages imported before the first that differs.
        place: usize,
        /// Address and role there on the first side.
        a: String,
        /// The same on the second.
        b: String,
    },
}

/// A word of one command line, and what stands for it in the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WordChange {
    /// On the first side, if it is there.
    pub a: Option<String>,
    /// On the second.
    pub b: Option<String>,
}

impl Difference {
    /// Whether the measurement depends on it. A policy's copy in the configuration page is a difference of its own.
    #[must_use]
    pub fn is_measured(&self) -> bool {
        !matches!(self, Self::IdBlock { .. } | Self::Parameters | Self::Shared { .. } | Self::Policy { .. })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Circumstance { what, a, b } => write!(f, "{what}: {a} -> {b}"),
            Self::Policy { a, b } => policy(f, a, b),
            Self::CommandLine { words } => command_line(f, words),
            Self::Configuration { field, a, b } => write!(f, "configuration {field}: {a} -> {b}"),
            Self::Register { register, a, b } => write!(f, "register {register}: {a} -> {b}"),
            Self::SaveArea { a, b } => write!(f, "address of the save area (backend mshv only): {a} -> {b}"),
            Self::IdBlock { a, b } => {
                let word = |there: &bool| if *there { "there" } else { "none" };
                write!(f, "ID block (not measured): {} -> {}", word(a), word(b))
            }
            Self::Parameters => f.write_str("parameters of the loader (not measured)"),
            Self::OnlyInA(run) => only(f, "A", run),
            Self::OnlyInB(run) => only(f, "B", run),
            Self::Moved { a, b, role } => write!(f, "page moved: {a} -> {b} ({role})"),
            Self::Kind { gpa, role, a, b } => write!(f, "page {gpa} ({role}): {a} -> {b}"),
            Self::Bytes { gpa, role, differing, first, a, b } => {
                write!(f, "page {gpa} ({role}): {differing} bytes differ, the first at {first:#x}")?;
                write!(f, "\n    A {}\n    B {}", spaced(a), spaced(b))
            }
            Self::MoreBytes { pages } => write!(f, "{pages} more measured pages of other content"),
            Self::Shared { pages } => write!(f, "{pages} shared pages (not measured)"),
            Self::Order { place, a, b } => write!(f, "import order, from page {place} on: {a} -> {b}"),
        }
    }
}

fn policy(f: &mut fmt::Formatter<'_>, a: &Policy, b: &Policy) -> fmt::Result {
    write!(f, "guest policy: {} -> {}", a.value, b.value)?;
    let gone = a.words.iter().filter(|word| !b.words.contains(word)).map(|word| format!(" -{word}"));
    let new = b.words.iter().filter(|word| !a.words.contains(word)).map(|word| format!(" +{word}"));
    gone.chain(new).try_for_each(|word| f.write_str(&word))?;
    for (side, policy) in [("A", a), ("B", b)] {
        if !policy.valid {
            write!(f, " (reserved bits of {side} are wrong)")?;
        }
    }
    Ok(())
}

fn command_line(f: &mut fmt::Formatter<'_>, words: &[WordChange]) -> fmt::Result {
    f.write_str("command line:")?;
    if words.is_empty() {
        f.write_str(" the same words in another order or spacing")?;
    }
    for change in words {
        for (sign, word) in [('-', &change.a), ('+', &change.b)] {
            if let Some(word) = word {
                write!(f, "\n    {sign} {word}")?;
            }
        }
    }
    Ok(())
}

fn only(f: &mut fmt::Formatter<'_>, side: &str, run: &Run) -> fmt::Result {
    let Run { gpa, end, pages, kind, role, .. } = run;
    write!(f, "only in {side}: {gpa}..{end}, {pages} {kind} pages ({role})")
}

/// Two hexadecimal digits a byte, with a space between.
fn spaced(hex: &str) -> String {
    let bytes: Vec<&str> = hex.as_bytes().chunks(2).filter_map(|pair| str::from_utf8(pair).ok()).collect();
    bytes.join(" ")
}
