//! What containerd offers as a container's root file system, read as a stack of layers.
//!
//! | snapshotter | mounts | layers |
//! |---|---|---|
//! | uvm | one `overlay` of its mount points, or a `bind` of one | the layer files beside the mount points |
//! | overlayfs | one `overlay` of directories, or a `bind` of one | the directories, packed |
//! | erofs (containerd 2.1 on) | an `erofs` image for each layer, top first, and a `format/…overlay` that names them by number; before them, if it is to be written to, `mkfs/ext4` | the images, if they have dm-verity metadata |
//!
//! Nothing of it is mounted. What a container writes stays in the guest; a writable layer of the host's that has
//! something in it already is shown on top.

use std::fs;
use std::path::{Path, PathBuf};

use agent_protocol::storage::MAX_LAYERS;
use containerd_shim::protos::api::Mount;

use super::foreign::Image;
use super::{
    LayerFile, LayersError, file_error, foreign, layer_error, pack, snapshotter, without_duplicates,
};

/// Mount types of containerd's that this runtime takes as they are; containerd must not mount them on the host.
pub const TAKEN_AS_THEY_ARE: &str = "erofs,mkfs/*,format/*,mkdir/*";

const DMVERITY: &str = "X-containerd.dmverity";
const MKDIR: &str = "X-containerd.mkdir.path";

/// Where a layer comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    /// A directory that shows what is in the layer.
    Directory(PathBuf),
    /// An erofs image.
    Image(Image),
}

/// The writable layer that the snapshotter offers on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Upper {
    /// None.
    #[default]
    Absent,
    /// A directory; what is in it already is shown on top.
    Directory(PathBuf),
    /// A file system that nobody has made yet.
    Unmade(PathBuf),
}

/// The layers of a root file system.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stack {
    /// Read-only layers, bottom first.
    lower: Vec<Source>,
    upper: Upper,
}

impl Stack {
    /// Reads the stack out of the mounts that containerd would have a shim make.
    ///
    /// # Errors
    /// When the mounts are not of one of the snapshotters that are known.
    pub fn from_mounts(mounts: &[Mount]) -> Result<Self, LayersError> {
        let Some((last, before)) = mounts.split_last() else {
            return Err(LayersError::Mounts("no mounts".into()));
        };
        match (last.type_.as_str(), before) {
            ("overlay", []) => Self::from_overlay(last, &[]),
            ("bind", []) => Ok(Self::from_bind(last)),
            ("erofs", []) => Ok(Self { lower: vec![image(last)?], upper: Upper::Absent }),
            ("format/mkdir/overlay" | "format/overlay", [_, ..]) => Self::from_overlay(last, before),
            ("format/bind", [layer]) if last.source == "{{ mount 0 }}" => {
                Ok(Self { lower: vec![image(layer)?], upper: Upper::Absent })
            }
            _ => {
                let kinds: Vec<_> = mounts.iter().map(|mount| mount.type_.as_str()).collect();
                Err(LayersError::Mounts(format!("mounts of types {kinds:?}")))
            }
        }
    }

    fn from_bind(mount: &Mount) -> Self {
        let source = PathBuf::from(&mount.source);
        if mount.options.iter().any(|option| option == "ro") {
            Self { lower: vec![Source::Directory(source)], upper: Upper::Absent }
        } else {
            Self { lower: Vec::new(), upper: Upper::Directory(source) }
        }
    }

    /// Reads an overlay's options; in those of the erofs snapshotter, numbers stand for the mounts `before` it.
    fn from_overlay(mount: &Mount, before: &[Mount]) -> Result<Self, LayersError> {
        let mut stack = Self::default();
        for option in &mount.options {
            match option.split_once('=') {
                // A backslash would escape a colon; the snapshotters' own paths have neither.
                Some(("lowerdir", list)) if !list.contains('\\') => stack.lower = lower(list, before)?,
                Some(("upperdir", path)) => stack.upper = upper(path, before)?,
                // What these change is where and how the host would write.
                Some(("workdir" | MKDIR, _)) | Some(("index" | "metacopy" | "nfs_export", "off")) => {}
                None if option == "volatile" || option == "ro" || option == "rw" => {}
                _ => {
                    return Err(LayersError::Option { kind: mount.type_.clone(), option: option.clone() });
                }
            }
        }
        if stack.lower.is_empty() {
            return Err(LayersError::Mounts("an overlay without lower directories".into()));
        }
        Ok(stack)
    }

    /// The layer files of the stack, bottom first, each once and at least one. What is not packed yet is packed:
    /// shared layers to `cache`, the container's own, if it has anything in it, to `private`.
    ///
    /// # Errors
    /// When a layer cannot be read, packed or stored, or is not what its description says.
    pub fn layers(&self, cache: &Path, private: &Path) -> Result<Vec<LayerFile>, LayersError> {
        let mut layers = Vec::with_capacity(self.lower.len() + 1);
        for source in &self.lower {
            layers.push(match source {
                Source::Directory(directory) => match snapshotter::find(directory)? {
                    Some(layer) => layer,
                    None => pack::shared(directory, cache)?,
                },
                Source::Image(image) => foreign::verified(image, cache)?,
            });
        }
        match &self.upper {
            Upper::Absent => {}
            Upper::Directory(upper) => {
                let mut entries = fs::read_dir(upper).map_err(file_error("read", upper))?;
                if layers.is_empty() || entries.next().is_some() {
                    layers.push(pack::to(upper, private)?);
                }
            }
            Upper::Unmade(path) => {
                if fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0) {
                    return Err(layer_error(path, "writable layer", "nothing in it", "a file system"));
                }
            }
        }
        let layers = without_duplicates(layers);
        if layers.len() > MAX_LAYERS {
            return Err(LayersError::TooMany(layers.len()));
        }
        Ok(layers)
    }
}

/// The image that an `erofs` mount names.
fn image(mount: &Mount) -> Result<Source, LayersError> {
    if mount.type_ != "erofs" {
        return Err(LayersError::Mounts(format!("a layer of type {:?}", mount.type_)));
    }
    let mut metadata = None;
    for option in &mount.options {
        match option.split_once('=') {
            Some((DMVERITY, path)) if path.starts_with('/') => metadata = Some(PathBuf::from(path)),
            None if option == "ro" || option == "loop" => {}
            _ => return Err(LayersError::Option { kind: mount.type_.clone(), option: option.clone() }),
        }
    }
    let path = PathBuf::from(&mount.source);
    match metadata {
        Some(metadata) => Ok(Source::Image(Image { path, metadata })),
        None => Err(LayersError::Unverified(path)),
    }
}

/// The lower layers that `list` names, top first, turned bottom first.
fn lower(list: &str, before: &[Mount]) -> Result<Vec<Source>, LayersError> {
    let unknown = || LayersError::Mounts(format!("an overlay of {list:?}"));
    let mut sources = match template(list) {
        None => {
            list.split(':').map(|path| directory(path).map(Source::Directory)).collect::<Result<_, _>>()?
        }
        Some((words, "")) => {
            let (first, last) = match words.as_slice() {
                ["mount", index] => (number(index), number(index)),
                ["overlay", first, last] => (number(first), number(last)),
                _ => return Err(unknown()),
            };
            let (first, last) = first.zip(last).ok_or_else(unknown)?;
            let range = before.get(first.min(last)..=first.max(last)).ok_or_else(unknown)?;
            let mut images = range.iter().map(image).collect::<Result<Vec<_>, _>>()?;
            if first > last {
                images.reverse();
            }
            images
        }
        Some(_) => return Err(unknown()),
    };
    sources.reverse();
    Ok(sources)
}

fn upper(path: &str, before: &[Mount]) -> Result<Upper, LayersError> {
    let Some((words, "/upper")) = template(path) else { return directory(path).map(Upper::Directory) };
    let mount = match words.as_slice() {
        ["mount", index] => number(index).and_then(|index| before.get(index)),
        _ => None,
    };
    match mount {
        Some(mount) if mount.type_ == "mkfs/ext4" => Ok(Upper::Unmade(PathBuf::from(&mount.source))),
        _ => Err(LayersError::Mounts(format!("an overlay that writes to {path:?}"))),
    }
}

fn directory(path: &str) -> Result<PathBuf, LayersError> {
    let path = PathBuf::from(path);
    if path.is_absolute() { Ok(path) } else { Err(LayersError::Mounts(format!("an overlay of {path:?}"))) }
}

/// The words of a `{{ … }}` that `text` begins with, and what follows it.
fn template(text: &str) -> Option<(Vec<&str>, &str)> {
    let (inside, rest) = text.strip_prefix("{{")?.split_once("}}")?;
    Some((inside.split_ascii_whitespace().collect(), rest))
}

fn number(word: &str) -> Option<usize> {
    word.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Mount { type_: kind.into(), source: source.into(), options, ..Mount::default() }
    }

    fn directories(paths: &[&str]) -> Vec<Source> {
        paths.iter().map(|path| Source::Directory(path.into())).collect()
    }

    fn erofs(number: u32) -> Mount {
        let dir = format!("/s/snapshots/{number}");
        let verity = format!("X-containerd.dmverity={dir}/layer.erofs.dmverity");
        mount("erofs", &format!("{dir}/layer.erofs"), &["ro", "loop", &verity])
    }

    fn erofs_source(number: u32) -> Source {
        let path = PathBuf::from(format!("/s/snapshots/{number}/layer.erofs"));
        Source::Image(Image { metadata: path.with_added_extension("dmverity"), path })
    }

    #[test]
    fn overlay_layers_come_bottom_first() {
        let options = ["index=off", "workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs"];
        let stack = Stack::from_mounts(&[mount("overlay", "overlay", &options)]).unwrap();
        assert_eq!(stack.lower, directories(&["/s/1/fs", "/s/2/fs"]));
        assert_eq!(stack.upper, Upper::Directory("/s/3/fs".into()));
    }

    #[test]
    fn a_bind_mount_is_one_layer() {
        let view = Stack::from_mounts(&[mount("bind", "/s/1/fs", &["ro", "rbind"])]).unwrap();
        assert_eq!(view, Stack { lower: directories(&["/s/1/fs"]), upper: Upper::Absent });
        let active = Stack::from_mounts(&[mount("bind", "/s/1/fs", &["rw", "rbind"])]).unwrap();
        assert_eq!(active, Stack { lower: Vec::new(), upper: Upper::Directory("/s/1/fs".into()) });
    }

    #[test]
    fn erofs_images_are_named_by_their_number() {
        let one = Stack::from_mounts(&[erofs(1)]).unwrap();
        assert_eq!(one, Stack { lower: vec![erofs_source(1)], upper: Upper::Absent });
        let merged = mount("format/bind", "{{ mount 0 }}", &["ro", "rbind"]);
        assert_eq!(Stack::from_mounts(&[erofs(1), merged]).unwrap(), one);

        let view = mount("format/mkdir/overlay", "overlay", &["lowerdir={{ overlay 0 1 }}"]);
        let stack = Stack::from_mounts(&[erofs(2), erofs(1), view]).unwrap();
        assert_eq!(stack.lower, [erofs_source(1), erofs_source(2)]);
        let view = mount("format/overlay", "overlay", &["lowerdir={{ overlay 1 0 }}"]);
        let stack = Stack::from_mounts(&[erofs(1), erofs(2), view]).unwrap();
        assert_eq!(stack.lower, [erofs_source(1), erofs_source(2)]);
    }

    #[test]
    fn a_writable_erofs_stack_has_an_upper_that_nobody_makes() {
        let ext4 = mount("mkfs/ext4", "/s/9/rwlayer.img", &["X-containerd.mkfs.fs=ext4", "rw", "loop"]);
        let options = [
            "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
            "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
            "workdir={{ mount 0 }}/work",
            "upperdir={{ mount 0 }}/upper",
            "lowerdir={{ mount 1 }}",
        ];
        let overlay = mount("format/mkdir/overlay", "overlay", &options);
        let stack = Stack::from_mounts(&[ext4, erofs(1), overlay.clone()]).unwrap();
        assert_eq!(stack.lower, [erofs_source(1)]);
        assert_eq!(stack.upper, Upper::Unmade("/s/9/rwlayer.img".into()));
        // The number of the writable layer's mount must be that of one.
        assert!(Stack::from_mounts(&[erofs(2), erofs(1), overlay]).is_err());
        let directory = ["upperdir=/s/9/fs", "workdir=/s/9/work", "lowerdir={{ overlay 0 0 }}"];
        let overlay = mount("format/mkdir/overlay", "overlay", &directory);
        let stack = Stack::from_mounts(&[erofs(1), overlay]).unwrap();
        assert_eq!(stack.upper, Upper::Directory("/s/9/fs".into()));
    }

    #[test]
    fn other_mounts_are_refused() {
        let format = |options: &[&str]| mount("format/mkdir/overlay", "overlay", options);
        let cases = [
            vec![],
            vec![mount("ext4", "/dev/sda", &[])],
            vec![mount("overlay", "overlay", &["lowerdir=relative"])],
            vec![mount("overlay", "overlay", &["upperdir=/u"])],
            vec![mount("overlay", "overlay", &["lowerdir=/a\\:b"])],
            vec![mount("overlay", "overlay", &["lowerdir=/a", "userxattr"])],
            vec![mount("bind", "/a", &["ro"]), mount("bind", "/b", &["ro"])],
            vec![erofs(1), mount("overlay", "overlay", &["lowerdir=/a"])],
            vec![erofs(1), format(&["lowerdir={{ overlay 0 1 }}"])],
            vec![erofs(1), format(&["lowerdir={{ overlay 0 0 }}:/a"])],
            vec![erofs(1), format(&["lowerdir={{ mounts 0 }}"])],
            vec![erofs(1), format(&["lowerdir={{ mount 0 }}", "uidmap=0:1000:1"])],
            vec![erofs(1), format(&[])],
            vec![format(&["lowerdir={{ mount 0 }}"])],
            vec![mount("erofs", "/s/fsmeta.erofs", &["ro", "loop", "device=/s/layer.erofs"])],
        ];
        for mounts in cases {
            assert!(Stack::from_mounts(&mounts).is_err(), "{mounts:?}");
        }
    }

    #[test]
    fn an_image_without_verity_metadata_is_refused_with_a_hint() {
        let error = Stack::from_mounts(&[mount("erofs", "/s/layer.erofs", &["ro", "loop"])]).unwrap_err();
        let message = error.to_string();
        assert!(
            message.starts_with("layer /s/layer.erofs") && message.contains("dmverity_mode"),
            "{message}"
        );
    }

    #[test]
    fn an_empty_writable_layer_is_left_out_and_a_full_one_is_on_top() {
        let root = tempfile::tempdir().unwrap();
        let (cache, private) = (root.path().join("cache"), root.path().join("private.layer"));
        let [lower, upper] = ["lower", "upper"].map(|name| root.path().join(name));
        fs::create_dir(&lower).unwrap();
        fs::write(lower.join("file"), "one").unwrap();
        fs::create_dir(&upper).unwrap();
        let lower = vec![Source::Directory(lower)];
        let stack = Stack { lower: lower.clone(), upper: Upper::Directory(upper.clone()) };
        assert_eq!(stack.layers(&cache, &private).unwrap().len(), 1);
        fs::write(upper.join("file"), "two").unwrap();
        let layers = stack.layers(&cache, &private).unwrap();
        assert_eq!((layers.len(), &layers[1].path), (2, &private));

        let image = root.path().join("rwlayer.img");
        let stack = Stack { lower, upper: Upper::Unmade(image.clone()) };
        assert_eq!(stack.layers(&cache, &private).unwrap().len(), 1);
        fs::write(&image, "made").unwrap();
        let error = stack.layers(&cache, &private).unwrap_err().to_string();
        assert!(error.contains("rwlayer.img: writable layer: expected nothing in it"), "{error}");
    }
}
