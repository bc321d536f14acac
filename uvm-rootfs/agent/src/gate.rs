//! The one door: every request is authorised here before it has any effect.
//!
//! A handler receives a [`Permit`], and only [`authorize`] makes permits. Today the gate admits what the agent
//! implements and refuses the rest: methods that it does not serve, and fields that its protocol does not know,
//! at any depth (a field that nobody reads is a field that nobody checked). What a request may *contain* is
//! decided by the handlers; a policy of the pod's owner belongs here, between the two checks and the permit.

use std::fmt::Write;

use protobuf::MessageDyn;
use protobuf::reflect::ReflectFieldRef;
use protobuf::reflect::ReflectValueRef;
use thiserror::Error;
use ttrpc::Code;

use agent_protocol::rpc::{agent, events, evidence, health};

/// What becomes of a method's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The agent serves it.
    Serve,
    /// The protocol has it, this agent does not.
    Unimplemented,
    /// The agent never does it, for the reason given.
    Refuse(&'static str),
}

/// A request message, with the method that it belongs to.
pub trait Request: MessageDyn {
    /// Name of the method.
    const METHOD: &'static str;
    /// Whether the method is served.
    const ADMISSION: Admission;
}

/// Leave to act on a request.
#[derive(Debug)]
pub struct Permit<R>(R);

impl<R> Permit<R> {
    /// The authorised request.
    pub fn into_request(self) -> R {
        self.0
    }
}

/// Why a request is refused at the gate.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Denied {
    /// The method is not served.
    #[error("{0} is not implemented by this agent")]
    Unimplemented(&'static str),
    /// The method is never served.
    #[error("{method} is refused: {reason}")]
    Refused {
        /// Name of the method.
        method: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// The request has a field that the agent's protocol does not know.
    #[error("{method}: unknown field number {number} in {place}")]
    UnknownField {
        /// Name of the method.
        method: &'static str,
        /// Where, as a path of field names.
        place: String,
        /// The field's number.
        number: u32,
    },
}

impl From<Denied> for ttrpc::Error {
    fn from(denied: Denied) -> Self {
        let code = match denied {
            Denied::Unimplemented(_) => Code::UNIMPLEMENTED,
            Denied::Refused { .. } => Code::PERMISSION_DENIED,
            Denied::UnknownField { .. } => Code::INVALID_ARGUMENT,
        };
        Self::RpcStatus(ttrpc::get_status(code, denied.to_string()))
    }
}

/// Decides about one request.
///
/// # Errors
/// Says why the request may not act.
pub fn authorize<R: Request>(request: R) -> Result<Permit<R>, Denied> {
    match R::ADMISSION {
        Admission::Serve => {}
        Admission::Unimplemented => return Err(Denied::Unimplemented(R::METHOD)),
        Admission::Refuse(reason) => return Err(Denied::Refused { method: R::METHOD, reason }),
    }
    let mut place = String::from("the request");
    match unknown_field(&request, &mut place) {
        Some(number) => Err(Denied::UnknownField { method: R::METHOD, place, number }),
        None => Ok(Permit(request)),
    }
}

/// The first field number that the message's description lacks; `place` then names where it is.
fn unknown_field(message: &dyn MessageDyn, place: &mut String) -> Option<u32> {
    if let Some((number, _)) = message.special_fields_dyn().unknown_fields().iter().next() {
        return Some(number);
    }
    let length = place.len();
    for field in message.descriptor_dyn().fields() {
        place.truncate(length);
        let _ = write!(place, ".{}", field.name());
        let found = match field.get_reflect(message) {
            ReflectFieldRef::Optional(value) => value.value().and_then(|value| in_value(&value, place)),
            ReflectFieldRef::Repeated(values) => values.into_iter().find_map(|value| in_value(&value, place)),
            // The protocol's maps hold strings, numbers and one flat message of numbers.
            ReflectFieldRef::Map(values) => values.into_iter().find_map(|(_, value)| in_value(&value, place)),
        };
        if found.is_some() {
            return found;
        }
    }
    place.truncate(length);
    None
}

fn in_value(value: &ReflectValueRef<'_>, place: &mut String) -> Option<u32> {
    match value {
        ReflectValueRef::Message(message) => unknown_field(&**message, place),
        _ => None,
    }
}

macro_rules! requests {
    ($($message:ty: $method:literal => $admission:expr;)*) => {
        $(impl Request for $message {
            const METHOD: &'static str = $method;
            const ADMISSION: Admission = $admission;
        })*
    };
}

use Admission::{Refuse, Serve, Unimplemented};

requests! {
    health::CheckRequest: "Health" => Serve;
    evidence::ReportRequest: "Report" => Serve;
    events::NextCorruptionRequest: "NextCorruption" => Serve;
    agent::CreateSandboxRequest: "CreateSandbox" => Serve;
    agent::DestroySandboxRequest: "DestroySandbox" => Serve;
    agent::CreateContainerRequest: "CreateContainer" => Serve;
    agent::StartContainerRequest: "StartContainer" => Serve;
    agent::RemoveContainerRequest: "RemoveContainer" => Serve;
    agent::ExecProcessRequest: "ExecProcess" => Serve;
    agent::SignalProcessRequest: "SignalProcess" => Serve;
    agent::WaitProcessRequest: "WaitProcess" => Serve;
    agent::UpdateContainerRequest: "UpdateContainer" => Serve;
    agent::StatsContainerRequest: "StatsContainer" => Serve;
    agent::PauseContainerRequest: "PauseContainer" => Serve;
    agent::ResumeContainerRequest: "ResumeContainer" => Serve;
    agent::WriteStreamRequest: "WriteStdin" => Serve;
    agent::ReadStreamRequest: "ReadStdout or ReadStderr" => Serve;
    agent::CloseStdinRequest: "CloseStdin" => Serve;
    agent::TtyWinResizeRequest: "TtyWinResize" => Serve;
    agent::GuestDetailsRequest: "GetGuestDetails" => Serve;
    agent::GetOOMEventRequest: "GetOOMEvent" => Serve;
    agent::CopyFileRequest: "CopyFile" => Serve;
    agent::SetGuestDateTimeRequest: "SetGuestDateTime" => Serve;
    agent::ReseedRandomDevRequest: "ReseedRandomDev" => Refuse("the host's entropy is not trusted");
    agent::GetMetricsRequest: "GetMetrics" => Refuse("nothing about the guest itself leaves it");
    agent::SetPolicyRequest: "SetPolicy" => Unimplemented;
    agent::UpdateEphemeralMountsRequest: "UpdateEphemeralMounts" => Unimplemented;
    agent::RemoveStaleVirtiofsShareMountsRequest: "RemoveStaleVirtiofsShareMounts" => Unimplemented;
    agent::UpdateInterfaceRequest: "UpdateInterface" => Unimplemented;
    agent::UpdateRoutesRequest: "UpdateRoutes" => Unimplemented;
    agent::ListInterfacesRequest: "ListInterfaces" => Unimplemented;
    agent::ListRoutesRequest: "ListRoutes" => Unimplemented;
    agent::AddARPNeighborsRequest: "AddARPNeighbors" => Unimplemented;
    agent::GetIPTablesRequest: "GetIPTables" => Unimplemented;
    agent::SetIPTablesRequest: "SetIPTables" => Unimplemented;
    agent::OnlineCPUMemRequest: "OnlineCPUMem" => Unimplemented;
    agent::MemHotplugByProbeRequest: "MemHotplugByProbe" => Unimplemented;
    agent::AddSwapRequest: "AddSwap" => Unimplemented;
    agent::VolumeStatsRequest: "GetVolumeStats" => Unimplemented;
    agent::ResizeVolumeRequest: "ResizeVolume" => Unimplemented;
}

#[cfg(test)]
mod tests {
    use agent_protocol::rpc::oci;
    use protobuf::{Message, MessageField};

    use super::*;

    #[test]
    fn what_is_not_served_gets_no_permit() {
        assert_eq!(
            authorize(agent::SetPolicyRequest::new()).unwrap_err(),
            Denied::Unimplemented("SetPolicy")
        );
        assert!(matches!(authorize(agent::ReseedRandomDevRequest::new()), Err(Denied::Refused { .. })));
        assert!(authorize(agent::StartContainerRequest::new()).is_ok());
    }

    #[test]
    fn unknown_fields_are_found_at_any_depth() {
        let mut mount = oci::Mount::new();
        mount.special_fields.mut_unknown_fields().add_varint(99, 1);
        let spec = oci::Spec { Mounts: vec![oci::Mount::new(), mount], ..Default::default() };
        let request = agent::CreateContainerRequest { OCI: MessageField::some(spec), ..Default::default() };
        // Through the wire, as it would arrive.
        let bytes = request.write_to_bytes().unwrap();
        let arrived = agent::CreateContainerRequest::parse_from_bytes(&bytes).unwrap();
        let denied = authorize(arrived).unwrap_err();
        let place = "the request.OCI.Mounts".to_owned();
        assert_eq!(denied, Denied::UnknownField { method: "CreateContainer", place, number: 99 });

        let mut top = agent::StartContainerRequest::new();
        top.special_fields.mut_unknown_fields().add_fixed32(7, 1);
        assert!(matches!(authorize(top), Err(Denied::UnknownField { number: 7, .. })));
    }
}
