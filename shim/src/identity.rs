//! Which pod a bundle belongs to, told by the annotations in its `config.json`.
//!
//! containerd's CRI plugin marks the sandbox container and its members; anything else is a pod of one. The
//! names that come out are safe path components: they become directories and socket names.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use agent_protocol::id::{self, IdError};
use serde::Deserialize;

/// Annotation that tells a sandbox from its containers.
pub const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// Annotation that names the sandbox a container belongs to.
pub const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// Longest `config.json` that is read, in bytes.
pub const MAX_SPEC_BYTES: u64 = 8 << 20;

/// A container's place in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The CRI sandbox: the pod itself. It has no process of its own in the guest.
    Sandbox,
    /// A container of a CRI sandbox.
    Member,
    /// A plain container, which is a pod of one.
    Single,
}

impl Role {
    /// Whether the pod begins and ends with this container.
    #[must_use]
    pub fn leads(self) -> bool {
        self != Self::Member
    }
}

/// A container's pod and its role there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Id of the pod: the sandbox's, or the plain container's own.
    pub pod: String,
    /// What the container is to the pod.
    pub role: Role,
}

/// Why a bundle's pod cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Larger than any spec that containerd writes.
    #[error("{path}: expected at most {MAX_SPEC_BYTES} bytes", path = .path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// Not the JSON of an OCI spec.
    #[error("{path}: {source}", path = .path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// An unknown container type.
    #[error("annotation {CONTAINER_TYPE}: expected \"sandbox\" or \"container\", found {0:?}")]
    Type(String),
    /// A container of a sandbox that does not say which.
    #[error("annotation {SANDBOX_ID} is missing from a container of a sandbox")]
    NoSandbox,
    /// A sandbox whose annotation names another one.
    #[error("annotation {SANDBOX_ID}: expected the sandbox's own id {own:?}, found {found:?}")]
    OtherSandbox {
        /// Id of the sandbox.
        own: String,
        /// What its annotation says.
        found: String,
    },
    /// An id that would not be safe as a file name.
    #[error("{what}: {source}")]
    Id {
        /// What the id names.
        what: &'static str,
        /// What is wrong with it.
        source: IdError,
    },
}

#[derive(Deserialize)]
struct Annotated {
    #[serde(default)]
    annotations: HashMap<String, String>,
}

impl Identity {
    /// Tells the pod of container `id` from its annotations.
    ///
    /// # Errors
    /// When the annotations contradict each other, or an id is not safe as a file name.
    pub fn from_annotations(id: &str, annotations: &HashMap<String, String>) -> Result<Self, IdentityError> {
        id::check(id).map_err(|source| IdentityError::Id { what: "container id", source })?;
        let sandbox = annotations.get(SANDBOX_ID);
        let identity = match annotations.get(CONTAINER_TYPE).map(String::as_str) {
            None => Self { pod: id.into(), role: Role::Single },
            Some("sandbox") => match sandbox {
                Some(found) if found != id => {
                    return Err(IdentityError::OtherSandbox { own: id.into(), found: found.clone() });
                }
                _ => Self { pod: id.into(), role: Role::Sandbox },
            },
            Some("container") => {
                Self { pod: sandbox.ok_or(IdentityError::NoSandbox)?.clone(), role: Role::Member }
            }
            Some(other) => return Err(IdentityError::Type(other.into())),
        };
        id::check(&identity.pod).map_err(|source| IdentityError::Id { what: "sandbox id", source })?;
        Ok(identity)
    }

    /// Tells the pod of container `id` from the `config.json` in `bundle`.
    ///
    /// # Errors
    /// As [`Identity::from_annotations`], and when the file cannot be read.
    pub fn from_bundle(id: &str, bundle: &Path) -> Result<Self, IdentityError> {
        let path = bundle.join("config.json");
        let bytes = read_spec(&path)?;
        let spec: Annotated =
            serde_json::from_slice(&bytes).map_err(|source| IdentityError::Syntax { path, source })?;
        Self::from_annotations(id, &spec.annotations)
    }
}

/// Reads a spec of at most [`MAX_SPEC_BYTES`].
///
/// # Errors
/// When the file cannot be read or is larger.
pub fn read_spec(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let failed = |source| IdentityError::Read { path: path.into(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_SPEC_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_SPEC_BYTES {
        return Err(IdentityError::TooLarge { path: path.into() });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(id: &str, pairs: &[(&str, &str)]) -> Result<Identity, IdentityError> {
        let annotations = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Identity::from_annotations(id, &annotations)
    }

    #[test]
    fn roles() {
        let single = identity("c1", &[("other", "x")]).unwrap();
        assert_eq!(single, Identity { pod: "c1".into(), role: Role::Single });
        let sandbox = identity("p1", &[(CONTAINER_TYPE, "sandbox"), (SANDBOX_ID, "p1")]).unwrap();
        assert_eq!(sandbox, Identity { pod: "p1".into(), role: Role::Sandbox });
        let member = identity("c1", &[(CONTAINER_TYPE, "container"), (SANDBOX_ID, "p1")]).unwrap();
        assert_eq!(member, Identity { pod: "p1".into(), role: Role::Member });
    }

    #[test]
    fn contradictions_are_refused() {
        let cases: [(&[(&str, &str)], &str); 4] = [
            (&[(CONTAINER_TYPE, "vm")], "found \"vm\""),
            (&[(CONTAINER_TYPE, "container")], "is missing"),
            (&[(CONTAINER_TYPE, "sandbox"), (SANDBOX_ID, "p2")], "found \"p2\""),
            (&[(CONTAINER_TYPE, "container"), (SANDBOX_ID, "../../etc")], "sandbox id"),
        ];
        for (annotations, message) in cases {
            let error = identity("c1", annotations).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
