//! The comparison, field by field.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::expect::{Bounds, Expect, ExpectConnect, ExpectTls, Patterns, Verified, plain};
use super::observed::{Observation, Observed, Seen, SeenTls};
use crate::account::{Encoding, LogSettings, LogTarget, Record};

/// Share by which a distribution may be off where the case gives no `tolerance`.
const TOLERANCE: f64 = 0.05;

/// One field that came out otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// `cluster`, `upstream_tls.sni`.
    pub field: String,
    /// As the case has it.
    pub expected: String,
    /// As it was; several values where the case's flows differ.
    pub observed: String,
}

/// Collects differences.
#[derive(Default)]
struct Comparison(Vec<Difference>);

impl Comparison {
    /// Every observed value must be the expected one.
    fn all<T: Into<String>>(
        &mut self,
        field: &str,
        expected: impl Into<String>,
        observed: impl IntoIterator<Item = T>,
    ) {
        let expected = expected.into();
        let observed: BTreeSet<String> = observed.into_iter().map(Into::into).collect();
        let fits = observed.len() == 1 && observed.contains(&expected);
        self.note(fits, field, expected, observed);
    }

    fn bounds(&mut self, field: &str, bounds: Bounds, observed: impl IntoIterator<Item = u64>) {
        let observed: BTreeSet<u64> = observed.into_iter().collect();
        let fits = !observed.is_empty() && observed.iter().all(|value| bounds.hold(*value));
        self.note(fits, field, bounds.text(), observed.iter().map(ToString::to_string));
    }

    fn note(
        &mut self,
        fits: bool,
        field: &str,
        expected: impl Into<String>,
        observed: impl IntoIterator<Item = String>,
    ) {
        if !fits {
            let observed: Vec<String> = observed.into_iter().collect();
            self.0.push(Difference {
                field: field.to_owned(),
                expected: expected.into(),
                observed: match observed.is_empty() {
                    true => "(nothing)".into(),
                    false => observed.join(" / "),
                },
            });
        }
    }
}

impl Expect {
    /// What of `seen` is otherwise than expected.
    pub(super) fn compare(&self, seen: &Observation) -> Vec<Difference> {
        let mut out = Comparison::default();
        if let Some(verdict) = self.verdict {
            out.all("verdict", verdict.name(), [seen.verdict().name()]);
        }
        self.client(seen, &mut out);
        self.log_fields(seen, &mut out);
        self.upstream_side(seen, &mut out);
        self.lines(seen, &mut out);
        self.on_503(seen, &mut out);
        if let Some(shares) = &self.distribution {
            self.shares(shares, seen, &mut out);
        }
        if let Some(wanted) = &self.metric {
            let fits = |labels: &Vec<(&str, String)>| {
                wanted
                    .iter()
                    .all(|(key, value)| labels.iter().any(|(k, v)| k == key && *v == plain(value)))
            };
            let show = |labels: &Vec<(&str, String)>| {
                labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
            };
            let text: Vec<_> = wanted.iter().map(|(k, v)| format!("{k}={}", plain(v))).collect();
            out.note(
                seen.series.iter().any(fits),
                "metric",
                text.join(","),
                seen.series.iter().map(show),
            );
        }
        out.0
    }

    fn client(&self, seen: &Observation, out: &mut Comparison) {
        let flows = &seen.flows;
        let answers = || flows.iter().map(|flow| flow.response.as_ref());
        if let Some(status) = self.status {
            let seen = answers().map(|a| a.map_or_else(dash, |a| a.status.to_string()));
            out.all("status", status.to_string(), seen);
        }
        if let Some(statuses) = &self.statuses {
            let mut seen: Vec<u16> = answers().flatten().map(|a| a.status).collect();
            let mut wanted = statuses.clone();
            if flows.len() > wanted.len() {
                // Of many requests, which statuses there were.
                seen.sort_unstable();
                seen.dedup();
                wanted.sort_unstable();
                wanted.dedup();
            }
            out.all("statuses", format!("{wanted:?}"), [format!("{seen:?}")]);
        }
        if let Some(body) = &self.body {
            let text = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
            let seen = answers().map(|a| a.map_or_else(dash, |a| text(&a.body)));
            out.all("body", body.clone(), seen);
        }
        for (name, value) in self.response_headers.iter().flatten() {
            let seen = answers().map(|a| a.map_or_else(dash, |a| header(&a.headers, name)));
            out.all(&format!("response_headers.{name}"), value.clone().unwrap_or_else(dash), seen);
        }
        if let Some(bounds) = self.duration_ms {
            let ms = |flow: &Observed| u64::try_from(flow.duration.as_millis()).unwrap_or(u64::MAX);
            out.bounds("duration_ms", bounds, flows.iter().map(ms));
        }
        if let Some(bounds) = self.bytes_to_client {
            out.bounds("bytes_to_client", bounds, flows.iter().map(|flow| flow.bytes_to_client));
        }
        if let Some(exits) = &self.curl_exit {
            let text = |exit: &u8| exit.to_string();
            let wanted: Vec<_> = exits.as_slice().iter().map(text).collect();
            let seen: BTreeSet<_> =
                flows.iter().map(|f| f.curl_exit.as_ref().map_or_else(dash, text)).collect();
            let fits = seen.iter().all(|exit| wanted.contains(exit));
            out.note(fits, "curl_exit", wanted.join(" or "), seen);
        }
    }

    fn log_fields(&self, seen: &Observation, out: &mut Comparison) {
        let records = || seen.flows.iter().map(|flow| flow.record.as_ref());
        let mut field = |name: &str, expected: &Option<String>, of: &dyn Fn(&Record) -> String| {
            if let Some(expected) = expected {
                let seen = records().map(|record| record.map_or_else(dash, of));
                out.all(name, expected.clone(), seen);
            }
        };
        field("cluster", &self.cluster, &|r| or_dash(r.upstream_cluster.as_ref()));
        field("route", &self.route, &|r| or_dash(r.route_name.as_ref()));
        field("details", &self.details, &|r| or_dash(r.response_code_details.as_ref()));
        if let Some(upstream) = &self.upstream {
            let of = |flow: &Observed| {
                or_dash(flow.record.as_ref().map_or(flow.direct, |record| record.upstream_host))
            };
            out.all("upstream", upstream.clone(), seen.flows.iter().map(of));
        }
        if let Some(flags) = &self.flags {
            let seen = records().map(|r| r.map_or_else(String::new, |r| join(&flag_set(r))));
            out.all("flags", join(flags), seen);
        }
        for part in self.details_contains.iter().flat_map(|parts| parts.as_slice()) {
            let seen: BTreeSet<_> = records()
                .map(|r| r.map_or_else(dash, |r| or_dash(r.response_code_details.as_ref())))
                .collect();
            let fits = seen.iter().all(|details| details.contains(part.as_str()));
            out.note(fits, "details_contains", part, seen);
        }
        if let Some(bounds) = self.bytes_sent {
            out.bounds("bytes_sent", bounds, records().map(|r| r.map_or(0, |r| r.bytes_sent)));
        }
        if let Some(log) = &self.log {
            let printed: Vec<Value> = records().flatten().map(as_json).collect();
            for (name, expected) in log {
                let of = |value: &Value| value.get(name).map_or_else(dash, plain);
                out.all(&format!("log.{name}"), plain(expected), printed.iter().map(of));
            }
        }
    }

    fn upstream_side(&self, seen: &Observation, out: &mut Comparison) {
        let flows = &seen.flows;
        let ups = || flows.iter().map(|flow| flow.seen.as_ref());
        if let Some(expected) = &self.upstream_tls {
            expected.compare(
                &ups().map(|up| up.and_then(|up| up.tls.as_ref())).collect::<Vec<_>>(),
                out,
            );
        }
        let mut text =
            |name: &str, expected: Option<&str>, of: &dyn Fn(&Seen) -> Option<String>| {
                if let Some(expected) = expected {
                    let seen = ups().map(|up| up.and_then(of).unwrap_or_else(dash));
                    out.all(name, expected, seen);
                }
            };
        let own = |text: Option<&'static str>| text.map(str::to_owned);
        text("upstream_protocol", self.upstream_protocol.map(|v| v.0), &|up| own(up.version));
        text("upstream_path", self.upstream_path.as_deref(), &|up| up.path.clone());
        text("upstream_host_header", self.upstream_host_header.as_deref(), &|up| up.host.clone());
        text("proxy_protocol", self.proxy_protocol.map(|v| v.0), &|up| own(up.proxy_protocol));
        for (name, value) in self.upstream_headers.iter().flatten() {
            let field = format!("upstream_headers.{name}");
            let value = value.clone().unwrap_or_else(dash);
            text(&field, Some(&value), &|up| Some(header(&up.headers, name)));
        }
        if let Some(ExpectConnect { method, authority, http_version }) = &self.connect_request {
            let connect = |up: &Seen| up.connect.clone();
            text("connect_request.method", method.as_deref(), &|up| {
                connect(up).map(|c| c.method.to_owned())
            });
            text("connect_request.authority", authority.as_deref(), &|up| {
                connect(up).map(|c| c.authority)
            });
            text("connect_request.http_version", http_version.map(|v| v.0), &|up| {
                connect(up).map(|c| c.version.to_owned())
            });
        }
        for place in self.also_sent_to.iter().flat_map(|places| places.as_slice()) {
            let copies: BTreeSet<String> = ups()
                .flatten()
                .flat_map(|up| &up.mirrored)
                .flat_map(|(address, cluster)| {
                    let host = cluster.rsplit('|').next().unwrap_or(cluster).to_owned();
                    [address.to_string(), host, cluster.clone()]
                })
                .collect();
            out.note(copies.contains(place), "also_sent_to", place, copies);
        }
        if let Some(bounds) = self.attempts {
            out.bounds("attempts", bounds, flows.iter().map(|flow| u64::from(flow.attempts)));
        }
    }

    fn lines(&self, seen: &Observation, out: &mut Comparison) {
        // Where logging is off, the shape of the line is judged all the same.
        let lines: Vec<String> = match seen.lines.is_empty() && self.log_lines.is_none() {
            false => seen.lines.clone(),
            true => {
                let records = seen.flows.iter().filter_map(|flow| flow.record.as_ref());
                records.map(|record| built_in(Encoding::Text, record)).collect()
            }
        };
        if let Some(count) = self.log_lines {
            out.all("log_lines", count.to_string(), [seen.lines.len().to_string()]);
        }
        if let Some(Patterns(patterns)) = &self.log_regex {
            let mut left: Vec<&String> = lines.iter().collect();
            for pattern in patterns {
                match left.iter().position(|line| pattern.is_match(line)) {
                    Some(at) => drop(left.swap_remove(at)),
                    None => out.note(false, "log_regex", pattern.as_str(), lines.iter().cloned()),
                }
            }
        }
        if self.log_json_keys.is_none() && self.log_json.is_none() {
            return;
        }
        let objects: Vec<Map<String, Value>> =
            seen.lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if let Some(keys) = &self.log_json_keys {
            let of = |o: &Map<String, Value>| join(&o.keys().cloned().collect());
            out.all("log_json_keys", join(keys), objects.iter().map(of));
        }
        for (key, value) in self.log_json.iter().flatten() {
            let of = |o: &Map<String, Value>| o.get(key).map_or_else(dash, Value::to_string);
            out.all(&format!("log_json.{key}"), value.to_string(), objects.iter().map(of));
        }
    }

    /// Fields that count where the status is 503.
    fn on_503(&self, seen: &Observation, out: &mut Comparison) {
        let failed: Vec<&Observed> = seen
            .flows
            .iter()
            .filter(|flow| flow.response.as_ref().is_some_and(|answer| answer.status == 503))
            .collect();
        if failed.is_empty() {
            return;
        }
        let details = |flow: &&Observed| {
            flow.record.as_ref().map_or_else(dash, |r| or_dash(r.response_code_details.as_ref()))
        };
        if let Some(wanted) = &self.details_on_503 {
            let wanted = wanted.as_slice();
            let seen: BTreeSet<String> = failed.iter().map(details).collect();
            let fits = seen.iter().all(|found| wanted.contains(found));
            out.note(fits, "details_on_503", wanted.join(" or "), seen);
        }
        if let Some(wanted) = &self.flags_on_503 {
            let wanted: BTreeSet<String> = wanted.as_slice().iter().cloned().collect();
            let flags = |flow: &&Observed| flow.record.as_ref().map(flag_set).unwrap_or_default();
            out.all("flags_on_503", join(&wanted), failed.iter().map(|flow| join(&flags(flow))));
        }
        if let Some(bounds) = self.body_bytes_on_503 {
            let bytes =
                |flow: &&Observed| flow.response.as_ref().map_or(0, |a| a.body.len() as u64);
            out.bounds("body_bytes_on_503", bounds, failed.iter().map(bytes));
        }
    }

    fn shares(&self, shares: &BTreeMap<String, f64>, seen: &Observation, out: &mut Comparison) {
        let tolerance = self.tolerance.unwrap_or(TOLERANCE);
        let records: Vec<&Record> = seen.flows.iter().filter_map(|f| f.record.as_ref()).collect();
        for (place, share) in shares {
            let hits = records.iter().filter(|r| {
                or_dash(r.upstream_host) == *place || or_dash(r.upstream_cluster.as_ref()) == *place
            });
            let found = hits.count() as f64 / seen.flows.len() as f64;
            let fits = (found - share).abs() <= tolerance + f64::EPSILON;
            let text = format!("{share} ± {tolerance}");
            out.note(fits, &format!("distribution.{place}"), text, [format!("{found:.3}")]);
        }
    }
}

impl ExpectTls {
    fn compare(&self, seen: &[Option<&SeenTls>], out: &mut Comparison) {
        if let Some(originated) = self.originated {
            let found = seen.iter().map(|tls| tls.is_some().to_string());
            out.all("upstream_tls.originated", originated.to_string(), found);
        }
        if let Some(sni) = &self.sni {
            let of = |tls: &SeenTls| tls.sni.clone().unwrap_or_else(|| "(not sent)".into());
            let expected = sni.clone().unwrap_or_else(|| "(not sent)".into());
            out.all("upstream_tls.sni", expected, seen.iter().map(|tls| tls.map_or_else(dash, of)));
        }
        if let Some(alpn) = &self.alpn {
            let expected = alpn.as_deref().unwrap_or_default().join(",");
            let found = seen.iter().map(|tls| tls.map_or_else(dash, |tls| tls.alpn.join(",")));
            out.all("upstream_tls.alpn", expected, found);
        }
        if let Some(Verified(text)) = &self.verify {
            let fits = seen.iter().all(|tls| tls.is_some_and(|tls| tls.verify.contains(text)));
            let found: BTreeSet<_> = seen
                .iter()
                .map(|tls| tls.map_or_else(dash, |tls| tls.verify.join(" or ")))
                .collect();
            out.note(fits, "upstream_tls.verify", text, found);
        }
        if let Some(expected) = self.client_certificate {
            let of = |tls: &SeenTls| tls.client_certificate.to_string();
            let found = seen.iter().map(|tls| tls.map_or_else(dash, of));
            out.all("upstream_tls.client_certificate", expected.to_string(), found);
        }
    }
}

/// What stands for nothing.
fn dash() -> String {
    "-".to_owned()
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(dash, |value| value.to_string())
}

fn join(set: &BTreeSet<String>) -> String {
    set.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

fn flag_set(record: &Record) -> BTreeSet<String> {
    record.flags.iter().map(|flag| format!("{flag:?}")).collect()
}

/// Every value of a header, joined; `-` if it is absent.
fn header(headers: &[(String, String)], name: &str) -> String {
    let named = headers.iter().filter(|(have, _)| have.eq_ignore_ascii_case(name));
    let values: Vec<&str> = named.map(|(_, value)| value.as_str()).collect();
    if values.is_empty() { dash() } else { values.join(",") }
}

/// The record under the names of LOG-30, as the writer prints them.
fn as_json(record: &Record) -> Value {
    serde_json::from_str(&built_in(Encoding::Json, record)).unwrap_or(Value::Null)
}

/// The record's line in a built-in format, without its newline.
pub(super) fn built_in(encoding: Encoding, record: &Record) -> String {
    let line = LogSettings::built_in(LogTarget::Stdout, encoding).line(record);
    line.unwrap_or_default().trim_end().to_owned()
}
