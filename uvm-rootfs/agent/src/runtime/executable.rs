//! Whether a command can run here, said in words before anything runs.
//!
//! The kernel answers "exec format error" for a program of another machine, and only after the container has
//! started. Looking at the file first gives an error that names the cause, from the call that created the
//! process.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where commands are looked for when the environment has no `PATH`, as in other runtimes.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const ELF_CLASS_64: u8 = 2;
const ELF_LITTLE_ENDIAN: u8 = 1;
/// Offset of `e_machine` in the ELF header (System V ABI, chapter 4).
const ELF_MACHINE: usize = 18;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;

/// Finds `command` as `execvp` would and checks that this machine can run it.
///
/// # Errors
/// A sentence for the user.
pub fn check(command: &str, path: Option<&str>) -> Result<PathBuf, String> {
    let file = find(command, path.unwrap_or(DEFAULT_PATH))?;
    let mut head = Vec::new();
    let opened = File::open(&file).and_then(|file| file.take(64).read_to_end(&mut head));
    // A program may be executable without being readable; then the kernel has the last word.
    if opened.is_ok() {
        format(&head).map_err(|reason| format!("exec {}: {reason}", file.display()))?;
    }
    Ok(file)
}

fn find(command: &str, path: &str) -> Result<PathBuf, String> {
    if command.is_empty() {
        return Err("exec: the command is empty".to_owned());
    }
    if command.contains('/') {
        return usable(Path::new(command)).map(|()| PathBuf::from(command));
    }
    let mut refusal = format!("exec: \"{command}\": executable file not found in $PATH");
    for directory in path.split(':').filter(|directory| !directory.is_empty()) {
        let file = Path::new(directory).join(command);
        match usable(&file) {
            Ok(()) => return Ok(file),
            Err(reason) if file.exists() => refusal = reason,
            Err(_) => {}
        }
    }
    Err(refusal)
}

fn usable(file: &Path) -> Result<(), String> {
    let metadata = file.metadata().map_err(|error| format!("exec {}: {error}", file.display()))?;
    if metadata.is_dir() {
        return Err(format!("exec {}: is a directory", file.display()));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(format!("exec {}: permission denied: the file is not executable", file.display()));
    }
    Ok(())
}

/// Judges the first bytes of a program.
fn format(head: &[u8]) -> Result<(), String> {
    if head.starts_with(b"#!") {
        return Ok(());
    }
    if !head.starts_with(&ELF_MAGIC) || head.len() < ELF_MACHINE + 2 {
        return Err("exec format error: neither an ELF program nor a script with a #! line".to_owned());
    }
    let machine = u16::from_le_bytes([head[ELF_MACHINE], head[ELF_MACHINE + 1]]);
    let little_endian = head[5] == ELF_LITTLE_ENDIAN;
    match (little_endian, machine) {
        (true, EM_X86_64 | EM_386) => Ok(()),
        (true, 183) => Err(wrong_machine("arm64")),
        (true, 243) => Err(wrong_machine("riscv64")),
        (true, 21) => Err(wrong_machine("ppc64le")),
        (false, _) => Err(wrong_machine("a big-endian machine")),
        (true, other) => {
            Err(wrong_machine(&format!("ELF machine {other}, class {}", head[4] / ELF_CLASS_64)))
        }
    }
}

fn wrong_machine(found: &str) -> String {
    format!(
        "exec format error: the program is for {found}, this machine is amd64; is the image of another architecture?"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(machine: u8, endian: u8) -> Vec<u8> {
        let mut head = vec![0; 64];
        head[..4].copy_from_slice(&ELF_MAGIC);
        (head[4], head[5], head[ELF_MACHINE]) = (ELF_CLASS_64, endian, machine);
        head
    }

    #[test]
    fn programs_of_this_machine_and_scripts_pass() {
        assert_eq!(format(&elf(62, 1)), Ok(()));
        assert_eq!(format(&elf(3, 1)), Ok(()));
        assert_eq!(format(b"#!/bin/sh\n"), Ok(()));
    }

    #[test]
    fn others_are_named() {
        assert!(format(&elf(183, 1)).unwrap_err().contains("arm64"));
        assert!(format(&elf(22, 2)).unwrap_err().contains("big-endian"));
        for head in [&b""[..], b"\x7fELF", b"hello"] {
            assert!(format(head).unwrap_err().contains("exec format error"), "{head:?}");
        }
    }

    #[test]
    fn commands_are_found_as_execvp_finds_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        let file = directory.path().join("tool");
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        assert!(check("tool", Some(path)).unwrap_err().contains("not executable"));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(check("tool", Some(&format!("/nonexistent::{path}"))), Ok(file.clone()));
        assert_eq!(check(file.to_str().unwrap(), None), Ok(file));
        assert!(check("absent", Some(path)).unwrap_err().contains("executable file not found in $PATH"));
        assert!(check("/absent/tool", None).unwrap_err().contains("No such file"));
        assert!(check(path, None).unwrap_err().contains("is a directory"));
        assert!(check("", None).is_err());
    }
}
