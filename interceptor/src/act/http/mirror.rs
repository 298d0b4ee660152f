//! Copies of requests that nobody waits for (VS-28): sent once the whole request is here, with its
//! Host as it is; the answer is dropped, nothing is repeated, nothing is logged. So many at a time;
//! what is beyond, or has a body too large to keep, is not mirrored.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderValue, Version};
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::account::Record;
use crate::act::carrier::{Ask, Carrier};
use crate::act::cluster::Kind;
use crate::act::tls::Alpn;
use crate::decide::route::Mirror;
use crate::decide::traffic::UpstreamProtocol;
use crate::origin::Origin;

use super::pool::{Pool, Purpose};
use super::shape::Side;
use super::upload::Source;
use super::{canon, shape};

/// From the start of the request to the end of the mirror's answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends a copy of the request to `mirror`, in its own time.
pub(super) fn send(
    carrier: &Carrier,
    origin: &Origin,
    mirror: &Mirror,
    (parts, host, strict): (&Parts, &HeaderValue, bool),
    original_host: &str,
    source: &Arc<Source>,
    record: &Record,
) {
    let Ok(room) = Arc::clone(&carrier.outbound.mirrors).try_acquire_owned() else { return };
    let (carrier, mirror, source) = (carrier.clone(), mirror.clone(), Arc::clone(source));
    let (dst, src) = (origin.dst, origin.src);
    let (mut parts, host, name) = (parts.clone(), host.clone(), original_host.to_owned());
    let ops = &mirror.destination.headers.request;
    shape::change(&mut parts.headers, ops, Side::Request(record));
    tokio::spawn(async move {
        let _room = room;
        let mirrored = async {
            source.ended().await;
            let upload = source.copy()?.again()?;
            let destination = &mirror.destination;
            let traffic = &destination.traffic;
            let http2 = match traffic.protocol {
                UpstreamProtocol::Http1 => false,
                UpstreamProtocol::Http2 => true,
                UpstreamProtocol::AsClient => parts.version == Version::HTTP_2,
            };
            let (hash, _) = shape::hash(&traffic.load_balancer, &parts, src.ip());
            match http2 {
                true => canon::request_h2(&mut parts, &host, traffic.tls.is_some(), strict),
                false => canon::request(&mut parts, host, false, strict),
            }
            let ask = Ask { dst, src, host: Some(&name), hash, avoid: &[], plain: None };
            let choice = carrier.choose(destination, ask).await.ok()?;
            let _counted = choice.cluster.admit(Kind::Request, &traffic.limits).ok()?;
            let permit = choice.cluster.admit(Kind::Connection, &traffic.limits).ok()?;
            let alpn = if http2 { Alpn::Http2 } else { Alpn::Http1 };
            let carried = carrier.open(destination, choice, ask, alpn, permit).await.ok()?;
            let pool = Pool::default();
            let purpose = Purpose {
                cluster: destination.cluster.clone(),
                upstream: destination.upstream.clone(),
                door: destination.door.clone(),
                traffic: Arc::clone(traffic),
                plain: None,
                host: None,
                made_of: None,
                http2,
                upgrades: false,
            };
            let mut connection = pool.start(purpose, carried).await.ok()?;
            connection.sender.ready().await.ok()?;
            let request = http::Request::from_parts(parts, upload);
            let mut answer = connection.sender.try_send(request).await.ok()?.into_body();
            while let Some(Ok(_)) = answer.frame().await {}
            Some(())
        };
        // Whether it worked matters to nobody.
        let _ = timeout(PATIENCE, mirrored).await;
    });
}
