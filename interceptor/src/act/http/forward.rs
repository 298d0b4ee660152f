//! What a route asks for, in the order of the filters that it stands for: CORS, faults, then the
//! router with its rewrites, time-outs and retries (sections 10.3 to 10.5).

use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue, SET_COOKIE};
use http::request::Parts;
use http::{Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio::time::{sleep, timeout};

use crate::account::Flag;
use crate::act::carrier::Ask;
use crate::act::cluster::Kind;
use crate::act::dial::random_below;
use crate::act::relay::RelayLimits;
use crate::decide::route::{Destination, Fault, HeaderOps, Retries, RouteActions};
use crate::decide::traffic::UpstreamProtocol;

use super::attempt::{Answered, Failed, Target, Tried};
use super::entry::{Deadline, Entry, Lent, UnderWay};
use super::exchange::Session;
use super::reply::{Failure, Reply};
use super::retry::{self, Cause};
use super::shape::{CorsVerdict, Side};
use super::upload::Source;
use super::wire::End;
use super::{World, canon, mirror, shape};

/// A request that may go.
pub(super) struct Allowed {
    pub(super) destination: Destination,
    pub(super) route: Arc<RouteActions>,
    /// The name that was judged.
    pub(super) host: HeaderValue,
    /// Whether the strict profile is in force.
    pub(super) strict: bool,
}

/// The upstream's answer, ready for the client.
pub(super) struct Forwarded {
    pub(super) response: Response<Incoming>,
    pub(super) deadline: Option<Deadline>,
    pub(super) under_way: UnderWay,
    /// The two ends of the tunnel that it becomes, and its limits.
    pub(super) tunnel: Option<(OnUpgrade, OnUpgrade, RelayLimits)>,
}

impl<W: World> Session<W> {
    /// From the judgement to the upstream's answer.
    pub(super) async fn forward(
        &self,
        Allowed { destination, route, host, strict }: Allowed,
        mut parts: Parts,
        body: Incoming,
        client_side: OnUpgrade,
        entry: &mut Entry,
    ) -> Result<Forwarded, Reply> {
        let version = parts.version;
        let cors = match &route.cors {
            None => Vec::new(),
            Some(policy) => match shape::cors(&parts, policy) {
                CorsVerdict::Pass => Vec::new(),
                CorsVerdict::Allow(headers) => headers,
                CorsVerdict::Answer(headers) => return Err(Reply::cors(headers)),
            },
        };
        inject(&route.fault, entry).await?;

        let traffic = Arc::clone(&destination.traffic);
        let websocket = version == Version::HTTP_11
            && body.is_end_stream()
            && canon::is_websocket(&parts.headers);
        let http2 = !websocket
            && match traffic.protocol {
                UpstreamProtocol::Http1 => false,
                UpstreamProtocol::Http2 => true,
                UpstreamProtocol::AsClient => version == Version::HTTP_2,
            };
        let limit = time_limit(&route, &parts, strict);
        let original = String::from_utf8_lossy(host.as_bytes()).into_owned();
        let (hash, cookie) = shape::hash(&traffic.load_balancer, &parts, self.origin.src.ip());
        let host = self.rewrite(&destination, &route, &mut parts, host, entry)?;
        let bodiless = body.is_end_stream();
        let retries = usable(&route.retries, &parts);
        let keep = retries.is_some() || !route.mirrors.is_empty();
        let (received, complete) = (Arc::clone(&entry.received), Arc::clone(&entry.complete));
        let source = Source::new((!bodiless).then_some(body), keep, received, complete);
        let carrier = self.world.carrier();
        for copy in route.mirrors.iter().filter(|mirror| hits(mirror.percent)) {
            let head = (&parts, &host, strict);
            mirror::send(carrier, &self.origin, copy, head, &original, &source, entry.record());
        }
        let side = Side::Request(entry.record());
        shape::change(&mut parts.headers, &destination.headers.request, side);
        let plain = String::from_utf8_lossy(host.as_bytes()).into_owned();
        let is_plain = !http2 && !websocket && traffic.is_bare();
        if http2 {
            canon::request_h2(&mut parts, &host, traffic.tls.is_some(), strict);
        } else {
            canon::request(&mut parts, host, websocket, strict);
        }

        let (dst, src) = (self.origin.dst, self.origin.src);
        let target = Target {
            carrier,
            pool: &self.pool,
            destination: &destination,
            ask: Ask {
                dst,
                src,
                host: Some(&original),
                hash,
                avoid: &[],
                plain: is_plain.then_some(&*plain),
            },
            http2,
            upgrades: websocket,
            repeatable: bodiless && parts.method.is_idempotent(),
        };
        let ops = [&route.headers.response, &destination.headers.response];
        let asked = match ops.into_iter().any(shape::has_operators) {
            true => parts.headers.clone(),
            false => HeaderMap::new(),
        };
        let mut deadline = limit.map(|limit| deadline(&source, limit));
        let sending = self.attempts(target, parts, &source, retries, entry);
        let outcome = match &mut deadline {
            None => sending.await,
            Some(deadline) => tokio::select! {
                outcome = sending => outcome,
                () = deadline => Err(Reply::timed_out("response_timeout")),
            },
        };
        let answered = outcome?;
        let answered_after = entry.elapsed();
        let Answered { mut response, connection, mut under_way, took } = answered;
        let switched = self.settle(&mut response, version, websocket)?;
        entry.edit(|record| {
            record.response_code = response.status().as_u16();
            record.response_code_details = Some("via_upstream".into());
            record.more.response_duration = Some(answered_after);
            if let Some(http) = &mut record.http {
                http.upstream_service_time = Some(took);
            }
        });
        let extra = cors.into_iter().chain(cookie.map(|cookie| (SET_COOKIE, cookie)));
        dress(&mut response, ops, extra, Side::Response(entry.record(), &asked));
        let tunnel = switched.then(|| {
            let limits = RelayLimits::of(&traffic.limits);
            (client_side, hyper::upgrade::on(&mut response), limits)
        });
        if http2 {
            self.pool.put(connection);
        } else if tunnel.is_none() {
            let (pool, request) = (Arc::clone(&self.pool), Arc::clone(&source));
            under_way.lent = Some(Lent { pool, connection, request });
        }
        // An upgrade is answered with its head; what follows has limits of its own.
        let deadline = deadline.filter(|_| tunnel.is_none());
        Ok(Forwarded { response, deadline, under_way, tunnel })
    }

    /// Path, headers and Host as the route has them (VS-26, VS-27); gives the Host.
    fn rewrite(
        &self,
        destination: &Destination,
        route: &RouteActions,
        parts: &mut Parts,
        host: HeaderValue,
        entry: &mut Entry,
    ) -> Result<HeaderValue, Reply> {
        let mut authority = None;
        if let Some(rewrite) = &route.rewrite {
            if !shape::rewrite_path(parts, rewrite) {
                return Err(Reply::bad_rewrite());
            }
            authority =
                rewrite.authority.as_ref().and_then(|name| HeaderValue::from_str(name).ok());
        }
        shape::change(&mut parts.headers, &route.headers.request, Side::Request(entry.record()));
        let authority = shape::set_host(&destination.headers.request)
            .or_else(|| shape::set_host(&route.headers.request))
            .or(authority);
        let Some(authority) = authority else { return Ok(host) };
        entry.edit(|record| {
            if let Some(http) = &mut record.http {
                http.authority = Some(String::from_utf8_lossy(authority.as_bytes()).into_owned());
            }
        });
        Ok(authority)
    }

    /// Sends the request as often as the route allows and its ends demand (VS-40 to VS-44).
    async fn attempts(
        &self,
        target: Target<'_>,
        parts: Parts,
        source: &Arc<Source>,
        retries: Option<&Retries>,
        entry: &mut Entry,
    ) -> Result<Answered, Reply> {
        let (mut tried, mut retrying, mut made) = (Tried::default(), None, 0);
        loop {
            let Some(upload) = source.again() else {
                // It was checked before the wait.
                return Err(Reply::no_answer(Failure::Closed));
            };
            let attempt = target.attempt(&parts, upload, entry, &mut tried, || source.again());
            let outcome = match retries.and_then(|retries| retries.per_try_timeout) {
                None => attempt.await,
                Some(limit) => timeout(limit, attempt).await.unwrap_or_else(|_| {
                    let reply = Reply::timed_out("upstream_per_try_timeout");
                    Err(Failed { cause: Cause::Late, reply: reply.into(), upload: false })
                }),
            };
            let outcome = outcome.map_err(|failed| self.blame_the_client(failed));
            made += 1;
            let again = retries.filter(|retries| match &outcome {
                Ok(Answered { response, .. }) => {
                    let status = response.status().as_u16();
                    retry::after_answer(retries, status, response.headers())
                }
                Err(failed) => retry::after_failure(retries, failed.cause),
            });
            let settled = |outcome: Result<Answered, Failed>| outcome.map_err(|it| *it.reply);
            let Some(retries) = again else { return settled(outcome) };
            if made > retries.attempts {
                return exhausted(outcome, entry);
            }
            if !source.can_repeat() {
                return settled(outcome);
            }
            // As many at a time as the cluster allows; the last attempt's counts as this one's.
            drop(retrying.take());
            if let Some(name) = &target.destination.cluster {
                let cluster = target.carrier.outbound.clusters.get(name);
                match cluster.admit(Kind::Retry, &target.destination.traffic.limits) {
                    Ok(permit) => retrying = Some(permit),
                    Err(_) => {
                        entry.edit(|record| record.flags.push(Flag::UO));
                        return settled(outcome);
                    }
                }
            }
            drop(outcome);
            let failed = tried.now.take().filter(|_| retries.elsewhere);
            tried.before.extend(failed);
            sleep(retry::back_off(made, retries.back_off)).await;
        }
    }

    /// A request that the client broke is not the upstream's failure.
    fn blame_the_client(&self, mut failed: Failed) -> Failed {
        if self.shared.end() == Some(End::Body) {
            *failed.reply = Reply::bad_body();
            failed.cause = Cause::Other;
        } else if failed.upload {
            *failed.reply = Reply::client_gone();
            failed.cause = Cause::Other;
        }
        failed
    }

    /// Makes the answer's head one for the client; true if it becomes a tunnel.
    fn settle(
        &self,
        response: &mut Response<Incoming>,
        version: Version,
        websocket: bool,
    ) -> Result<bool, Reply> {
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if switched && !(websocket && canon::is_websocket(response.headers())) {
            return Err(Reply::no_answer(Failure::Protocol));
        }
        if switched && self.shared.end().is_some() {
            // Bytes sent ahead of the answer were refused: the tunnel would lack them.
            return Err(Reply::bad_body());
        }
        if !canon::response(response.headers_mut(), switched) {
            return Err(Reply::no_answer(Failure::Protocol));
        }
        *response.version_mut() = version;
        Ok(switched)
    }
}

/// The last attempt's end, marked as such (VS-43).
fn exhausted(outcome: Result<Answered, Failed>, entry: &mut Entry) -> Result<Answered, Reply> {
    match outcome {
        Ok(answered) => {
            entry.edit(|record| record.flags.push(Flag::URX));
            Ok(answered)
        }
        Err(failed) => Err(failed.reply.exhausted()),
    }
}

/// Faults that a route asks for (VS-50, VS-51): delay, then abort.
async fn inject(fault: &Fault, entry: &mut Entry) -> Result<(), Reply> {
    if let Some((delay, percent)) = fault.delay
        && hits(percent)
    {
        entry.edit(|record| record.flags.push(Flag::DI));
        sleep(delay).await;
    }
    match fault.abort {
        Some((abort, percent)) if hits(percent) => Err(Reply::abort(abort)),
        _ => Ok(()),
    }
}

/// True for `percent` of all calls, to a ten-thousandth.
fn hits(percent: f64) -> bool {
    (random_below(1_000_000) as f64) < percent * 10_000.0
}

/// The retries of a request, if it may have any (GAP-17).
fn usable<'a>(retries: &'a Retries, parts: &Parts) -> Option<&'a Retries> {
    let may = !retries.idempotent_only || parts.method.is_idempotent();
    (retries.attempts > 0 && may).then_some(retries)
}

/// How long the request may take; the client may say otherwise in istio (VS-30, VS-31).
fn time_limit(route: &RouteActions, parts: &Parts, strict: bool) -> Option<Duration> {
    let header = parts.headers.get(canon::ENVOY_TIMEOUT).filter(|_| !strict);
    let asked = header.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let limit = asked.map(Duration::from_millis).or(route.timeout);
    limit.filter(|limit| !limit.is_zero())
}

/// Runs out `limit` after the request's end.
fn deadline(source: &Arc<Source>, limit: Duration) -> Deadline {
    let source = Arc::clone(source);
    Box::pin(async move {
        source.ended().await;
        sleep(limit).await;
    })
}

/// The answer's headers as the route and the destination want them.
fn dress(
    response: &mut Response<Incoming>,
    ops: [&HeaderOps; 2],
    extra: impl Iterator<Item = (HeaderName, HeaderValue)>,
    side: Side<'_>,
) {
    let headers = response.headers_mut();
    for ops in ops {
        shape::change(headers, ops, side);
    }
    for (name, value) in extra {
        match name {
            SET_COOKIE => {
                headers.append(name, value);
            }
            name => {
                headers.insert(name, value);
            }
        }
    }
}
