//! The pod's policy, as far as the host has to do with it: the digest that the launch binds as host data.
//!
//! Host data is SHA-256 of the policy document's bytes, which the pod carries in base64 in an annotation; without
//! one it is zeros. The guest and verifiers compare, so a host that changes either is found out. What the document
//! says is the guest's business.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use launch::plan::HostData;
use oci_spec::runtime::Spec;
use sha2::{Digest, Sha256};

/// Annotation with the policy document in base64.
const POLICY: &str = "io.katacontainers.config.agent.policy";
/// Annotation with an init-data document, whose digest would be bound in the policy's place.
const INIT_DATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";

/// Why a pod has no host data.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The annotation is not base64.
    #[error("annotation {POLICY}: expected a policy document in base64: {0}")]
    Base64(#[from] base64::DecodeError),
    /// The annotation is there and holds nothing.
    #[error("annotation {POLICY}: expected a policy document in base64, found nothing")]
    Empty,
    /// Init-data is not supported: its digest must not be left out silently.
    #[error("annotation {INIT_DATA}: init-data is not supported")]
    InitData,
}

/// The host data of the pod that `spec` leads.
///
/// # Errors
/// When the policy cannot be decoded, or the pod asks for something else to be bound.
pub fn host_data(spec: &Spec) -> Result<HostData, PolicyError> {
    let Some(annotations) = spec.annotations() else { return Ok(HostData::default()) };
    if annotations.contains_key(INIT_DATA) {
        return Err(PolicyError::InitData);
    }
    match annotations.get(POLICY).map(|text| text.trim_ascii()) {
        None => Ok(HostData::default()),
        Some("") => Err(PolicyError::Empty),
        Some(text) => Ok(HostData(Sha256::digest(STANDARD.decode(text)?).into())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(annotations: Value) -> Result<String, String> {
        let spec = json!({ "ociVersion": "1.0.2", "annotations": annotations });
        let data = host_data(&serde_json::from_value(spec).unwrap());
        data.map(|data| data.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn host_data_is_the_digest_of_the_document() {
        // printf 'package agent_policy' | sha256sum
        let digest = "c7abff30657b53751ea87469bb773efe7e0d7eba70b9eb6b0849f13c7353f289";
        assert_eq!(of(json!({ POLICY: "cGFja2FnZSBhZ2VudF9wb2xpY3k=" })).unwrap(), digest);
        assert_eq!(of(json!({ POLICY: "cGFja2FnZSBhZ2VudF9wb2xpY3k=\n" })).unwrap(), digest);
    }

    #[test]
    fn without_a_policy_it_is_zeros() {
        assert_eq!(of(json!({ "other": "x" })).unwrap(), "0".repeat(64));
        assert_eq!(host_data(&Spec::default()).unwrap(), HostData::default());
    }

    #[test]
    fn what_cannot_be_bound_is_refused() {
        for text in ["*", "cGFja2FnZQ", "cGFja2FnZQ=", "c G F j"] {
            let error = of(json!({ POLICY: text })).unwrap_err();
            assert!(
                error.starts_with("annotation io.katacontainers.config.agent.policy: expected"),
                "{error}"
            );
        }
        assert!(of(json!({ POLICY: "" })).unwrap_err().ends_with("found nothing"));
        let error = of(json!({ INIT_DATA: "x" })).unwrap_err();
        assert!(error.contains("cc_init_data: init-data is not supported"), "{error}");
    }
}
