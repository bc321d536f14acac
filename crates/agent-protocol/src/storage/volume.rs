//! Volumes that the containers of a pod share and that end with it: Kubernetes' `emptyDir`.
//!
//! In Kata's form: driver `local` for a volume on the pod's writable space, `ephemeral` for one in guest memory.
//! The first container that names a volume makes it, with a mode and possibly a group that Kubernetes' `fsGroup`
//! asks for; later ones must name it alike. A container's bind mounts then have its mount point as their source.

use crate::id;
use crate::paths;
use crate::rpc::agent::Storage;

use super::{
    BLOCK_SIZE, DRIVER_EPHEMERAL, DRIVER_LOCAL, StorageError, expect, expect_plain, field_error, shown,
};

/// Everybody may use an `emptyDir`.
const MODE: &str = "mode=0777";
const SIZE: &str = "size";
const GROUP: &str = "fsgid";
/// Largest volume in guest memory that can be asked for, in bytes; what there is decides the rest.
const MAX_SIZE: u64 = 1 << 44;

/// Where a volume keeps its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// On the pod's writable space: the scratch device where it has one, else guest memory.
    Local,
    /// In guest memory.
    Memory {
        /// Most bytes that it holds, at least one page; without it, half of the guest's memory.
        size: Option<u64>,
    },
}

/// One volume. It is mounted at [`VolumeStorage::mount_point`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeStorage {
    /// Its name in the pod, by the rule of [`crate::id`].
    pub name: String,
    /// Where it keeps its files.
    pub medium: Medium,
    /// The group that owns it and whatever is made in it; without it, group 0 and the maker's.
    pub group: Option<u32>,
}

impl VolumeStorage {
    /// Where the volume is: its medium and its name decide.
    #[must_use]
    pub fn mount_point(&self) -> String {
        match self.medium {
            Medium::Local => paths::local_volume(&self.name),
            Medium::Memory { .. } => paths::ephemeral_volume(&self.name),
        }
    }

    /// Whether `message` is for a volume rather than for a part of the root file system.
    #[must_use]
    pub fn is_volume(message: &Storage) -> bool {
        matches!(message.driver.as_str(), DRIVER_LOCAL | DRIVER_EPHEMERAL)
    }

    /// The message that carries this volume.
    ///
    /// # Errors
    /// If this volume is one that [`VolumeStorage::parse`] would refuse.
    pub fn to_message(&self) -> Result<Storage, StorageError> {
        let (driver, source, fstype) = self.medium.words();
        let mut options = vec![MODE.to_owned()];
        if let Medium::Memory { size: Some(size) } = self.medium {
            options.push(format!("{SIZE}={size}"));
        }
        options.extend(self.group.map(|group| format!("{GROUP}={group}")));
        let message = Storage {
            driver: driver.to_owned(),
            source: source.to_owned(),
            fstype: fstype.to_owned(),
            options,
            mount_point: self.mount_point(),
            ..Storage::default()
        };
        Self::parse(&message).map(|_| message)
    }

    /// Reads a volume from its message.
    ///
    /// # Errors
    /// Names the first field that is not as [`VolumeStorage::to_message`] would have written it.
    pub fn parse(message: &Storage) -> Result<Self, StorageError> {
        let (mut medium, directory) = match message.driver.as_str() {
            DRIVER_LOCAL => (Medium::Local, paths::LOCAL_VOLUMES),
            DRIVER_EPHEMERAL => (Medium::Memory { size: None }, paths::EPHEMERAL_VOLUMES),
            other => return Err(field_error(message, "driver", other, "local or ephemeral")),
        };
        let (_, source, fstype) = medium.words();
        expect(message, "source", &message.source, source)?;
        expect(message, "fstype", &message.fstype, fstype)?;
        expect_plain(message)?;
        if !message.driver_options.is_empty() {
            return Err(field_error(message, "driver_options", &message.driver_options.join(" "), "none"));
        }
        let name = message.mount_point.strip_prefix(directory).and_then(|rest| rest.strip_prefix('/'));
        let name = name.ok_or_else(|| {
            field_error(message, "mount_point", &message.mount_point, "<the driver's directory>/<name>")
        })?;
        id::check(name)
            .map_err(|source| StorageError::Name { mount_point: shown(&message.mount_point), source })?;
        let mut options = message.options.iter().map(String::as_str).peekable();
        if options.next() != Some(MODE) {
            return Err(field_error(message, "options", &message.options.join(","), "mode=0777 first"));
        }
        if let Medium::Memory { size } = &mut medium
            && let Some(text) = options.next_if(|option| option.starts_with("size="))
        {
            *size = Some(size_option(message, text)?);
        }
        let group = options.next_if(|option| option.starts_with("fsgid="));
        let group = group.map(|text| group_option(message, text)).transpose()?;
        if let Some(rest) = options.next() {
            return Err(field_error(
                message,
                "options",
                rest,
                "size=<bytes> (in memory only), then fsgid=<group>",
            ));
        }
        Ok(Self { name: name.to_owned(), medium, group })
    }
}

impl Medium {
    /// Driver, source and type of file system in the message.
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Local => (DRIVER_LOCAL, "local", "local"),
            Self::Memory { .. } => (DRIVER_EPHEMERAL, "tmpfs", "tmpfs"),
        }
    }
}

fn size_option(message: &Storage, text: &str) -> Result<u64, StorageError> {
    let size = decimal(text, SIZE).filter(|size| (BLOCK_SIZE..=MAX_SIZE).contains(size));
    size.ok_or_else(|| field_error(message, SIZE, text, "size=<decimal bytes>, 4096 to 16 TiB"))
}

fn group_option(message: &Storage, text: &str) -> Result<u32, StorageError> {
    // The kernel reserves the highest id for "no change".
    let group = decimal(text, GROUP).and_then(|group| u32::try_from(group).ok()).filter(|id| *id != u32::MAX);
    group.ok_or_else(|| field_error(message, GROUP, text, "fsgid=<decimal group id>"))
}

/// The number after `key=`, if it is written as a number is printed.
fn decimal(text: &str, key: &str) -> Option<u64> {
    let value = text.strip_prefix(key)?.strip_prefix('=')?;
    value.parse::<u64>().ok().filter(|number| number.to_string() == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(medium: Medium) -> VolumeStorage {
        VolumeStorage { name: "cache-1".to_owned(), medium, group: Some(2000) }
    }

    #[test]
    fn volumes_survive_the_wire() {
        let local = volume(Medium::Local).to_message().unwrap();
        assert_eq!(
            (local.driver.as_str(), local.source.as_str(), local.fstype.as_str()),
            ("local", "local", "local")
        );
        assert_eq!(local.options, ["mode=0777", "fsgid=2000"]);
        assert_eq!(local.mount_point, "/run/kata-containers/sandbox/local/cache-1");
        let memory = volume(Medium::Memory { size: Some(65536) }).to_message().unwrap();
        assert_eq!((memory.driver.as_str(), memory.source.as_str()), ("ephemeral", "tmpfs"));
        assert_eq!(memory.options, ["mode=0777", "size=65536", "fsgid=2000"]);
        assert_eq!(memory.mount_point, "/run/kata-containers/sandbox/ephemeral/cache-1");
        for medium in [Medium::Local, Medium::Memory { size: None }, Medium::Memory { size: Some(4096) }] {
            for group in [None, Some(0), Some(7)] {
                let sent = VolumeStorage { group, ..volume(medium) };
                assert_eq!(VolumeStorage::parse(&sent.to_message().unwrap()).unwrap(), sent);
            }
        }
    }

    #[test]
    fn names_are_names() {
        for name in ["", ".", "..", "a/b", "-x", "a b", "a\0"] {
            let sent = VolumeStorage { name: name.to_owned(), ..volume(Medium::Local) };
            assert!(matches!(sent.to_message(), Err(StorageError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn every_other_form_is_refused() {
        type Change = (&'static str, fn(&mut Storage));
        let options = |list: &[&str]| list.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>();
        let changes: [Change; 9] = [
            ("driver", |s| s.driver = "nfs".to_owned()),
            ("source", |s| s.source = "/etc".to_owned()),
            ("fstype", |s| s.fstype = "ext4".to_owned()),
            ("shared", |s| s.shared = true),
            ("driver_options", |s| s.driver_options = vec!["x=1".to_owned()]),
            ("mount_point", |s| s.mount_point = paths::local_volume("cache-1")),
            ("mount_point", |s| s.mount_point = paths::SANDBOX_SHM.to_owned()),
            ("mount_point", |s| s.mount_point = paths::EPHEMERAL_VOLUMES.to_owned()),
            ("options", |s| s.options.clear()),
        ];
        let sent = volume(Medium::Memory { size: Some(65536) }).to_message().unwrap();
        for (expected, apply) in changes {
            let mut message = sent.clone();
            apply(&mut message);
            match VolumeStorage::parse(&message) {
                Err(StorageError::Field { field, .. }) => assert_eq!(field, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
        for list in [
            &["mode=0700"][..],
            &["size=65536", "mode=0777"],
            &["mode=0777", "size=65536,uid=0"],
            &["mode=0777", "size=4095"],
            &["mode=0777", "size=+65536"],
            &["mode=0777", "size=18446744073709551616"],
            &["mode=0777", "fsgid=4294967295"],
            &["mode=0777", "fsgid=1", "size=65536"],
            &["mode=0777", "size=65536", "size=65536"],
            &["mode=0777", "fsgid=1", "exec"],
        ] {
            let message = Storage { options: options(list), ..sent.clone() };
            assert!(VolumeStorage::parse(&message).is_err(), "{list:?}");
        }
        // Space that is not memory has no size of its own.
        let local = volume(Medium::Local).to_message().unwrap();
        let sized = Storage { options: options(&["mode=0777", "size=65536"]), ..local };
        assert!(VolumeStorage::parse(&sized).is_err());
    }
}
