//! What client, upstream and access log show of a flow.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use crate::account::Record;

/// How a flow ended, as the client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// Bytes or the request reached an upstream.
    Forward,
    /// Accepted, then closed, with nothing sent to the client.
    Reset,
    /// The proxy answered the request itself.
    LocalReply,
    /// Never captured.
    Bypass,
    /// No progress while both sides wait.
    Hang,
    /// Several flows that ended differently.
    Mixed,
}

impl Verdict {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Reset => "reset",
            Self::LocalReply => "local_reply",
            Self::Bypass => "bypass",
            Self::Hang => "hang",
            Self::Mixed => "mixed",
        }
    }
}

/// What is observed of one connection, or of one request.
#[derive(Debug, Clone)]
pub(super) struct Observed {
    pub(super) verdict: Verdict,
    /// Its access-log record; `None` where there is no line.
    pub(super) record: Option<Record>,
    /// Where a flow without a record went.
    pub(super) direct: Option<SocketAddr>,
    /// What the HTTP client gets.
    pub(super) response: Option<Response>,
    /// What the upstream gets, if anything reaches one.
    pub(super) seen: Option<Seen>,
    /// Tries at an upstream.
    pub(super) attempts: u32,
    pub(super) bytes_to_client: u64,
    pub(super) duration: Duration,
    /// How curl would end; `None` where no curl speaks like that.
    pub(super) curl_exit: Option<u8>,
}

/// An HTTP answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    /// Names in lower case.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

/// What the upstream sees.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) tls: Option<SeenTls>,
    /// HTTP version spoken to it, `1.1` or `2`.
    pub(super) version: Option<&'static str>,
    pub(super) path: Option<String>,
    pub(super) host: Option<String>,
    /// Names in lower case.
    pub(super) headers: Vec<(String, String)>,
    pub(super) connect: Option<SeenConnect>,
    /// `V1` or `V2`.
    pub(super) proxy_protocol: Option<&'static str>,
    /// Copies of the request: address and cluster.
    pub(super) mirrored: Vec<(SocketAddr, String)>,
}

/// TLS that the proxy began.
#[derive(Debug, Clone)]
pub(super) struct SeenTls {
    pub(super) sni: Option<String>,
    pub(super) alpn: Vec<&'static str>,
    /// Every way in which the vocabulary may call what was verified.
    pub(super) verify: Vec<String>,
    pub(super) client_certificate: bool,
}

/// A request for a tunnel.
#[derive(Debug, Clone)]
pub(super) struct SeenConnect {
    pub(super) method: &'static str,
    pub(super) authority: String,
    pub(super) version: &'static str,
}

/// Everything that one case shows.
#[derive(Debug, Clone, Default)]
pub(super) struct Observation {
    /// In order.
    pub(super) flows: Vec<Observed>,
    /// The lines that the log writer makes of them, without newlines; none where logging is off.
    pub(super) lines: Vec<String>,
    /// Series of section 16 that grew: name and labels.
    pub(super) series: Vec<Vec<(&'static str, String)>>,
}

impl Observation {
    /// One verdict for all.
    pub(super) fn verdict(&self) -> Verdict {
        let verdicts: BTreeSet<Verdict> = self.flows.iter().map(|flow| flow.verdict).collect();
        match verdicts.first() {
            Some(only) if verdicts.len() == 1 => *only,
            _ => Verdict::Mixed,
        }
    }
}
