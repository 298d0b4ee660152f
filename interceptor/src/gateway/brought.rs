//! One stream that a node brought: whose it is, whether the node may say so, and on into the path.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Method, Request, Response, StatusCode};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::peer::Peer;
use super::serve::Gateway;
use crate::account::{Flag, Record};
use crate::act::carrier::Stream;
use crate::act::relay::{RelayLimits, relay};
use crate::admit::Admitted;
use crate::clock;
use crate::conn::{self, Site};
use crate::decide::{ClusterName, Reason};
use crate::hbone::{Metadata, Refusal, Tunnel};
use crate::origin::{Arrival, Intercepted, Origin, OriginalDst};
use crate::policy::Enforcement;
use crate::sniff::prefixed::Prefixed;
use crate::workloads::Workload;

/// A stream that is taken in.
struct Brought {
    /// Towards the node.
    near: TcpStream,
    /// Towards the path.
    intercepted: Intercepted,
    admitted: Admitted,
    site: Site,
    /// Why policy will have refused it.
    refusal: Refusal,
}

/// Why it is not: the answer that the node gets.
struct Refused(StatusCode, &'static str);

impl Gateway {
    /// Serves one stream to its end.
    pub(super) async fn brought(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        peer: &Peer,
    ) {
        let Brought { near, intercepted, admitted, site, refusal } =
            match self.take(&request, peer).await {
                Ok(brought) => brought,
                Err(Refused(status, reason)) => {
                    let answer =
                        Response::builder().status(status).header("interceptor-reason", reason);
                    if let Ok(answer) = answer.body(()) {
                        // A node that is gone needs no answer.
                        let _ = respond.send_response(answer, true);
                    }
                    return;
                }
            };
        let Ok(send) = respond.send_response(Response::new(()), false) else { return };
        let tunnel = Tunnel::new(send, request.into_body(), ()).refused_by(refusal);
        let tunnel = Stream::Wrapped(Box::new(tunnel));
        tokio::spawn(conn::serve_brought(intercepted, admitted, site));
        let near = Prefixed::new(Bytes::new(), near);
        // The path has limits of its own.
        let limits = RelayLimits { idle: None, duration: None };
        let mut over = Box::pin(self.drain.over());
        relay(near, tunnel, limits, over.as_mut()).await;
    }

    async fn take(&self, request: &Request<RecvStream>, peer: &Peer) -> Result<Brought, Refused> {
        let unreadable = |reason| Refused(StatusCode::BAD_REQUEST, reason);
        if request.method() != Method::CONNECT {
            return Err(Refused(StatusCode::METHOD_NOT_ALLOWED, "not_connect"));
        }
        let metadata = Metadata::of_headers(request.headers());
        let metadata = metadata.map_err(|_| unreadable("metadata_unreadable"))?;
        if self.drain.has_begun() {
            return Err(Refused(StatusCode::SERVICE_UNAVAILABLE, "draining"));
        }
        if peer.has_expired(clock::wall()) {
            self.refuse(&metadata, peer, None);
            return Err(Refused(StatusCode::FORBIDDEN, "certificate_expired"));
        }
        let nodes = self.nodes.load();
        let vouched = nodes.vouched(&peer.identities, &metadata.claim);
        let found =
            vouched.and_then(|(node, entry)| Some((node, entry, self.policies().of(entry)?)));
        let Some((node, entry, mut site)) = found else {
            self.refuse(&metadata, peer, None);
            return Err(Refused(StatusCode::FORBIDDEN, Reason::ForeignWorkload.label()));
        };
        let Metadata { claim, dst, src, trace } = &metadata;
        site.workload = Arc::new(entry.workload(claim));
        let full = |_| Refused(StatusCode::SERVICE_UNAVAILABLE, Reason::LimitReached.label());
        let (near, far) = self.loopback.pair().await.map_err(full)?;
        let admitted = site.room.admit(&far).map_err(|(id, _)| {
            self.refuse(&metadata, peer, Some((id, &site.workload)));
            full(std::io::ErrorKind::QuotaExceeded.into())
        })?;
        let refusal = Refusal::default();
        let arrival =
            Arrival { node: node.into(), trace: Arc::clone(&trace.id), refusal: refusal.clone() };
        let origin = Origin {
            id: admitted.number,
            dst: OriginalDst::new(*dst),
            src: *src,
            workload: Arc::clone(&site.workload),
            arrival: Some(Arc::new(arrival)),
            accepted: Instant::now(),
            accepted_wall: clock::wall(),
        };
        let intercepted = Intercepted { client: far, origin };
        Ok(Brought { near, intercepted, admitted, site, refusal })
    }

    /// The line of a stream that is not taken in: for want of room, or since the node may not bring it.
    fn refuse(&self, metadata: &Metadata, peer: &Peer, full: Option<(u64, &Arc<Workload>)>) {
        let Metadata { claim, dst, src, trace } = metadata;
        let reason = if full.is_some() { Reason::LimitReached } else { Reason::ForeignWorkload };
        let mut record = Record::new(clock::wall(), *dst as SocketAddr, *src);
        record.upstream_cluster = Some(ClusterName::black_hole());
        record.flags = vec![if full.is_some() { Flag::OM } else { Flag::UH }];
        record.reason = reason;
        if self.policies().enforcement() == Enforcement::Strict {
            record.connection_termination_details = Some(reason.label().into());
        }
        record.more.connection_id = full.map(|(id, _)| id);
        record.more.trace_id = Some(Arc::clone(&trace.id));
        record.more.node = peer.identities.first().map(|identity| identity.as_str().into());
        record.more.workload = Some(format!("{}/{}", claim.namespace, claim.name));
        self.log.write(record);
    }
}
