//! Memory of a process by what it is for: the guest's own memory, and all else, which is what the monitor costs.
//!
//! Figures are proportional set sizes (PSS): a page that several processes map counts for each of them in part, so
//! that sums over processes are true.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::sample::{Unit, Value};

/// Memory of a process, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resident {
    /// PSS of everything but guest memory.
    pub beside_guest: u64,
    /// Of it, what is the process's alone and would be free without it.
    pub private: u64,
    /// Of it, what other processes of the program would share: text and read-only data.
    pub of_files: u64,
    /// Guest memory that the guest has touched.
    pub guest: u64,
}

/// Which of a process's mappings is its guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// None: the process runs no guest.
    None,
    /// The one of exactly so many KiB.
    Of(u64),
    /// The largest one, for machines whose size somebody else chose.
    Largest,
}

/// One mapping, in KiB.
#[derive(Debug, Default)]
struct Mapping {
    size: u64,
    of_file: bool,
    rss: u64,
    pss: u64,
    private: u64,
}

impl Resident {
    /// Memory of process `pid`.
    ///
    /// # Errors
    /// When the process is gone, or not exactly one of its mappings is the guest's.
    pub fn of(pid: u32, guest: Guest) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        Self::from_smaps(&text, guest).context(path)
    }

    fn from_smaps(text: &str, guest: Guest) -> Result<Self> {
        let mappings = mappings(text);
        let guest_kib = match guest {
            Guest::None => None,
            Guest::Of(kib) => Some(kib),
            Guest::Largest => mappings.iter().map(|mapping| mapping.size).max(),
        };
        let (mut total, mut guests) = (Self::default(), 0);
        for mapping in mappings {
            if Some(mapping.size) == guest_kib {
                guests += 1;
                total.guest += mapping.rss;
                continue;
            }
            total.beside_guest += mapping.pss;
            total.private += mapping.private;
            if mapping.of_file {
                total.of_files += mapping.pss;
            }
        }
        let expected = usize::from(guest_kib.is_some());
        ensure!(guests == expected, "expected {expected} mapping of {guest_kib:?} KiB, found {guests}");
        Ok(total)
    }

    /// Takes another process in.
    pub fn add(&mut self, other: Self) {
        self.beside_guest += other.beside_guest;
        self.private += other.private;
        self.of_files += other.of_files;
        self.guest += other.guest;
    }

    /// As values, for a table; `what` is whose memory it is.
    #[must_use]
    pub fn values(self, what: &str) -> Vec<Value> {
        let value = |name: &str, kib| Value::count(format!("{what} {name}"), Unit::Kibibytes, kib);
        vec![
            value("PSS", self.beside_guest),
            value("private", self.private),
            value("PSS of files", self.of_files),
        ]
    }
}

fn mappings(text: &str) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        let Some(field) = first.strip_suffix(':') else {
            // `address permissions offset device inode path`
            let of_file = words.nth(3).is_some_and(|inode| inode != "0");
            found.push(Mapping { of_file, ..Mapping::default() });
            continue;
        };
        let number = words.next().and_then(|word| word.parse::<u64>().ok());
        let (Some(mapping), Some(kib)) = (found.last_mut(), number) else { continue };
        match field {
            "Size" => mapping.size = kib,
            "Rss" => mapping.rss = kib,
            "Pss" => mapping.pss = kib,
            "Private_Clean" | "Private_Dirty" => mapping.private += kib,
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0c0000000-55d0c0100000 r-xp 00000000 00:2a 1234                       /usr/bin/vmm
Size:               1024 kB
Rss:                 600 kB
Pss:                 300 kB
Private_Clean:        10 kB
Private_Dirty:         0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0010000000 rw-p 00000000 00:00 0
Size:             262144 kB
Rss:               40000 kB
Pss:               40000 kB
Private_Clean:         0 kB
Private_Dirty:     40000 kB
7f0020000000-7f0020010000 rw-p 00000000 00:00 0                          [heap]
Size:                 64 kB
Rss:                  50 kB
Pss:                  50 kB
Private_Clean:         0 kB
Private_Dirty:        50 kB
";

    #[test]
    fn guest_memory_is_told_apart() {
        let expected = Resident { beside_guest: 350, private: 60, of_files: 300, guest: 40000 };
        assert_eq!(Resident::from_smaps(SMAPS, Guest::Of(262_144)).unwrap(), expected);
        assert_eq!(Resident::from_smaps(SMAPS, Guest::Largest).unwrap(), expected);
    }

    #[test]
    fn a_guest_that_is_not_there_is_an_error() {
        assert!(Resident::from_smaps(SMAPS, Guest::Of(524_288)).is_err());
        assert_eq!(Resident::from_smaps(SMAPS, Guest::None).unwrap().beside_guest, 40350);
    }
}
