//! Refusals on their way to whoever tells the pods' owners of them (the node agent's Events).

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc;

use super::Record;
use crate::decide::Reason;
use crate::workloads::PodIdentity;

/// Something of a pod's that policy, or a limit, did not let go, or would not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Whose it was.
    pub pod: Arc<PodIdentity>,
    /// Where to.
    pub dst: SocketAddr,
    /// The name that was shown, as the client wrote it.
    pub name: Option<String>,
    /// Why.
    pub reason: Reason,
    /// It was let go all the same.
    pub audited: bool,
}

impl Refusal {
    /// The refusal that a record tells of, if it is one that a pod's owner can do something about.
    pub(super) fn of(record: &Record) -> Option<Self> {
        if !concerns_owner(record.reason) {
            return None;
        }
        let (pod, name) = (record.more.pod.clone()?, record.named().map(str::to_owned));
        let (dst, reason, audited) =
            (record.downstream_local_address, record.reason, record.audited);
        Some(Self { pod, dst, name, reason, audited })
    }
}

fn concerns_owner(reason: Reason) -> bool {
    match reason {
        Reason::NotRegistered
        | Reason::PortNotRegistered
        | Reason::NoServerName
        | Reason::WrongProtocol
        | Reason::Malformed
        | Reason::SniffTimeout
        | Reason::AddressNotVerified
        | Reason::SpecialAddress
        | Reason::ConnectMethod
        | Reason::BadHost
        | Reason::HttpVersion
        | Reason::LimitReached
        | Reason::LogLost
        | Reason::HiddenName => true,
        Reason::Registered
        | Reason::AllowAny
        | Reason::EarlyClose
        | Reason::NoOriginalDst
        | Reason::Bypassed
        | Reason::ForeignWorkload
        | Reason::NotServed
        | Reason::NoPolicy
        | Reason::NoRoute => false,
    }
}

/// Who hears of refusals, if anybody does.
#[derive(Debug, Default)]
pub(super) struct Listener(OnceLock<mpsc::Sender<Refusal>>);

impl Listener {
    pub(super) fn set(&self, listener: mpsc::Sender<Refusal>) {
        // There is one agent, which sets it once.
        let _ = self.0.set(listener);
    }

    /// Never waits: who cannot keep up hears less.
    pub(super) fn hear(&self, record: &Record) {
        let Some(listener) = self.0.get() else { return };
        if let Some(refusal) = Refusal::of(record) {
            let _ = listener.try_send(refusal);
        }
    }
}
