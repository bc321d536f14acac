//! The mounts that containerd is told to make.
//!
//! They show the layers by the host's own mounts of them, so that containerd and other runtimes can use them. The
//! shim of utility VMs recognises the layers in `lowerdir` and attaches their files instead.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;

use crate::api::messages::Mount;
use crate::error::Error;
use crate::store::{Entry, Kind, Store};

/// Tells whether this kernel's overlayfs knows the option `index`.
const INDEX_PARAMETER: &str = "/sys/module/overlay/parameters/index";

/// The mounts of an active snapshot or a view. Blocks: layers that are needed are mounted on the host.
///
/// # Errors
/// When the snapshot is committed, or a layer cannot be mounted.
pub fn of(store: &Store, entry: &Entry) -> Result<Vec<Mount>, Error> {
    let record = &entry.record;
    if record.kind == Kind::Committed {
        return Err(Error::Kind {
            name: record.name.clone(),
            expected: "active or a view",
            found: record.kind.name(),
        });
    }
    let upper = store.upper_directory(entry.id);
    // Nobody looks at what is unpacked here; without lower directories nothing has to be mounted for it.
    if record.extraction.is_some() {
        return Ok(vec![bind(&upper, "rw")]);
    }
    let lower = store.chain(record.parent.as_deref())?;
    let lower = lower.into_iter().map(|layer| store.mount_layer(layer)).collect::<Result<Vec<_>, _>>()?;
    let mount = match (record.kind, lower.as_slice()) {
        (Kind::Active, []) => bind(&upper, "rw"),
        (_, []) => bind(&upper, "ro"),
        (Kind::View, [only]) => bind(only, "ro"),
        (kind, lower) => {
            let mut options = Vec::new();
            if Path::new(INDEX_PARAMETER).exists() {
                options.push("index=off".into());
            }
            if kind == Kind::Active {
                options.push(format!("workdir={}", store.work_directory(entry.id).display()));
                options.push(format!("upperdir={}", upper.display()));
            }
            let lower: Vec<String> = lower.iter().map(|path| path.display().to_string()).collect();
            options.push(format!("lowerdir={}", lower.join(":")));
            mount("overlay", "overlay".into(), options)
        }
    };
    Ok(vec![mount])
}

/// Gives a new container's root directory the owner that the topmost layer's has: overlayfs shows the upper one's.
///
/// # Errors
/// When a directory cannot be looked at or changed.
pub fn inherit_owner(store: &Store, entry: &Entry) -> Result<(), Error> {
    let top = store.chain(entry.record.parent.as_deref())?.into_iter().next();
    let Some(top) = top.filter(|_| entry.record.extraction.is_none()) else { return Ok(()) };
    let (lower, upper) = (store.mount_layer(top)?, store.upper_directory(entry.id));
    let owner = fs::metadata(&lower).map_err(Error::file("read", &lower))?;
    chown(&upper, Some(owner.uid()), Some(owner.gid())).map_err(Error::file("set the owner of", &upper))
}

fn bind(source: &Path, access: &str) -> Mount {
    mount("bind", source.display().to_string(), vec![access.into(), "rbind".into()])
}

fn mount(kind: &str, source: String, options: Vec<String>) -> Mount {
    Mount { r#type: kind.into(), source, target: String::new(), options }
}
