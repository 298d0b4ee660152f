//! What was seen against what was expected, field by field.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::case::{FirstBytes, Flow};
use super::client::Exchange;
use super::stage::Seen;
use super::stub::{Asked, Contact};

/// Fields that no observer outside the product can see, each with where it is checked instead.
const UNSEEN: [&str; 4] = ["metric", "application_result", "note_upstream", "tolerance"];

/// The differences, none if the case passed. `open`: policy lets pass what nobody names.
#[must_use]
pub fn compare(expected: &Map<String, Value>, flow: &Flow, open: bool, seen: &Seen) -> Vec<String> {
    let mut judge = Judge { seen, flow, open, expected, differences: Vec::new() };
    for (field, value) in expected {
        judge.field(field, value);
    }
    judge.differences
}

/// How many milliseconds a busy machine may add to anything. What this hides, a person would not
/// notice either; waits that cases are about are longer.
const BUSY_MS: u64 = 500;

/// What happened, in the format's word.
#[must_use]
pub fn verdict(seen: &Seen) -> &'static str {
    let mut all = seen.exchanges.iter().map(|exchange| verdict_of(exchange, seen));
    let Some(first) = all.next() else { return "nothing" };
    if all.all(|other| other == first) { first } else { "mixed" }
}

fn verdict_of(exchange: &Exchange, seen: &Seen) -> &'static str {
    // The proxy dials from the caller's address too, and now and then from the same port: its own
    // line tells.
    let proxied = |contact: &Contact| {
        let end = contact.peer.to_string();
        seen.lines.iter().any(|line| {
            line.field("upstream_local_address") == Some(&end)
                && line.field("upstream_cluster") != Some("BypassCluster")
        })
    };
    let direct = |contact: &Contact| exchange.local == Some(contact.peer) && !proxied(contact);
    if seen.contacts.iter().any(direct) {
        "bypass"
    } else if exchange.hung {
        "hang"
    } else if exchange.status.is_some() {
        if exchange.from_upstream() { "forward" } else { "local_reply" }
    } else if exchange.received > 0 || seen.contacts.iter().any(Contact::spoke) {
        "forward"
    } else {
        "reset"
    }
}

struct Judge<'a> {
    seen: &'a Seen,
    flow: &'a Flow,
    open: bool,
    expected: &'a Map<String, Value>,
    differences: Vec<String>,
}

impl Judge<'_> {
    fn field(&mut self, field: &str, value: &Value) {
        let last = self.seen.exchanges.last().cloned().unwrap_or_default();
        match field {
            "verdict" => self.equal(field, value, verdict(self.seen).into()),
            "status" => self.equal(field, value, last.status.into()),
            "statuses" => {
                let all: Vec<_> = self.seen.exchanges.iter().map(|e| e.status).collect();
                self.equal(field, value, serde_json::json!(all));
            }
            "body" => self.equal(field, value, last.body.into()),
            "response_headers" => self.headers(field, value, &last.headers),
            "curl_exit" => {
                let seen = Value::from(last.curl_exit);
                let allowed = value.as_array().is_some_and(|codes| codes.contains(&seen));
                if !allowed {
                    self.equal(field, value, seen);
                }
            }
            "duration_ms" => self.duration(field, value, last.elapsed_ms),
            "bytes_to_client" => self.bounds(field, value, last.received),
            "cluster" => self.logged(field, "upstream_cluster", value),
            "route" => self.logged(field, "route_name", value),
            "details" => self.logged(field, "response_code_details", value),
            "details_contains" => self.details_contain(value),
            "flags" => self.flags(field, value, false),
            "flags_on_503" => self.flags(field, value, true),
            "details_on_503" => {
                if last.status == Some(503) {
                    self.logged(field, "response_code_details", value);
                }
            }
            "body_bytes_on_503" => {
                if last.status == Some(503) {
                    self.logged_bounds(field, value);
                }
            }
            "bytes_sent" => self.logged_bounds(field, value),
            "log" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    self.logged(&format!("log.{name}"), name, value);
                }
            }
            "log_regex" => self.regex(value),
            "log_lines" => self.equal(field, value, self.seen.lines.len().into()),
            "log_json_keys" | "log_json" => self.json(field, value),
            "upstream" => self.upstream(value),
            "upstream_tls" => self.tls(value),
            "upstream_protocol" | "upstream_path" | "upstream_host_header" | "upstream_headers" => {
                self.request(field, value);
            }
            "connect_request" => self.connect(value),
            "proxy_protocol" => {
                let seen = self.seen.contacts.iter().find_map(|contact| contact.proxy_protocol);
                let digits = |text: String| text.chars().filter(char::is_ascii_digit).collect();
                let (want, got): (String, String) =
                    (digits(value.to_string()), seen.map_or(String::new(), |v| v.to_string()));
                self.equal(field, &want.into(), got.into());
            }
            "also_sent_to" => self.also_sent_to(value),
            "attempts" => {
                let requests: usize =
                    self.seen.contacts.iter().map(|contact| contact.requests.len()).sum();
                let attempts = if requests > 0 { requests } else { self.seen.attempts.len() };
                self.bounds(field, value, attempts as u64);
            }
            "distribution" => self.distribution(value),
            other if UNSEEN.contains(&other) => {}
            other => self.differ(other, "something that can be seen live", "nothing that can"),
        }
    }

    fn differ(&mut self, field: &str, expected: impl ToString, seen: impl ToString) {
        let (expected, seen) = (expected.to_string(), seen.to_string());
        self.differences.push(format!("{field}: expected {expected}, seen {seen}"));
    }

    fn equal(&mut self, field: &str, expected: &Value, seen: Value) {
        if *expected != seen {
            self.differ(field, expected, seen);
        }
    }

    /// An exact number, or `{min, max}`.
    fn bounds(&mut self, field: &str, expected: &Value, seen: u64) {
        let bound = |name: &str| expected.get(name).and_then(Value::as_u64);
        let holds = match expected.as_u64() {
            Some(exact) => seen == exact,
            None => {
                expected.is_object()
                    && bound("min").is_none_or(|min| seen >= min)
                    && bound("max").is_none_or(|max| seen <= max)
            }
        };
        if !holds {
            self.differ(field, expected, seen);
        }
    }

    /// As [`Judge::bounds`], where a busy machine may be later than the most that is allowed.
    fn duration(&mut self, field: &str, expected: &Value, seen: u64) {
        let most = expected.get("max").unwrap_or(expected).as_u64();
        let late = most.is_some_and(|most| seen > most && seen <= most + BUSY_MS);
        self.bounds(field, expected, if late { most.unwrap_or(seen) } else { seen });
    }

    /// Whether the log is expected to be silent: then nothing in it can be read.
    fn silent(&self) -> bool {
        self.expected.get("log_lines").and_then(Value::as_u64) == Some(0)
    }

    fn logged(&mut self, field: &str, name: &str, expected: &Value) {
        if self.silent() {
            return;
        }
        let expected = match expected {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        if self.seen.lines.is_empty() {
            self.differ(field, &expected, "no access-log line");
        }
        let values: Vec<_> =
            self.seen.lines.iter().map(|line| line.field(name).map(str::to_owned)).collect();
        for value in values {
            match value {
                Some(value) if value == expected => {}
                Some(value) => return self.differ(field, &expected, value),
                None => return self.differ(field, &expected, "a log without this field"),
            }
        }
    }

    fn logged_bounds(&mut self, field: &str, expected: &Value) {
        let last = self.seen.lines.last().and_then(|line| line.field("bytes_sent")?.parse().ok());
        match last {
            Some(number) => self.bounds(field, expected, number),
            None => self.differ(field, expected, "no log line that says so"),
        }
    }

    fn details_contain(&mut self, expected: &Value) {
        let details: Vec<_> =
            self.seen.lines.iter().filter_map(|line| line.field("response_code_details")).collect();
        let details = details.join(" ");
        for part in texts(expected) {
            if !details.contains(part) {
                self.differ("details_contains", part, &details);
            }
        }
    }

    fn flags(&mut self, field: &str, expected: &Value, only_503: bool) {
        let mut want: Vec<_> =
            expected.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        want.sort_unstable();
        let last = self.seen.exchanges.last().and_then(|exchange| exchange.status);
        if self.silent() || (only_503 && last != Some(503)) {
            return;
        }
        if self.seen.lines.is_empty() {
            self.differ(field, expected, "no access-log line");
        }
        let seen: Vec<_> = self.seen.lines.iter().map(super::log::Entry::flags).collect();
        if let Some(wrong) = seen.iter().find(|flags| flags.as_ref() != Some(&want)) {
            self.differ(field, expected, format!("{wrong:?}"));
        }
    }

    /// Each pattern has a line of its own.
    fn regex(&mut self, expected: &Value) {
        let patterns = texts(expected);
        let mut left: Vec<_> = self.seen.lines.iter().map(|line| line.text.clone()).collect();
        for pattern in patterns {
            let found = regex::Regex::new(pattern).map(|regex| {
                let fits = |line: &String| {
                    regex.is_match(line) || at_once(line).is_some_and(|line| regex.is_match(&line))
                };
                left.iter().position(fits)
            });
            match found {
                Ok(Some(at)) => drop(left.remove(at)),
                Ok(None) => self.differ("log_regex", pattern, left.join(" ⏎ ")),
                Err(error) => self.differ("log_regex", "a regular expression", error),
            }
        }
    }

    fn json(&mut self, field: &str, expected: &Value) {
        let Some(object) = self.seen.lines.last().and_then(|line| line.json.clone()) else {
            return self.differ(field, expected, "no line of JSON");
        };
        if let Some(keys) = expected.as_array() {
            let mut want: Vec<_> = keys.iter().filter_map(Value::as_str).collect();
            let mut seen: Vec<_> = object.keys().map(String::as_str).collect();
            want.sort_unstable();
            seen.sort_unstable();
            if want != seen {
                self.differ(field, want.join(","), seen.join(","));
            }
        }
        for (key, value) in expected.as_object().into_iter().flatten() {
            let seen = object.get(key).cloned().unwrap_or_default();
            self.equal(&format!("{field}.{key}"), value, seen);
        }
    }

    fn upstream(&mut self, expected: &Value) {
        let expected = expected.as_str().unwrap_or_default();
        if let Some(logged) = self.seen.lines.last().and_then(|line| line.field("upstream_host"))
            && logged != expected
        {
            let logged = format!("{logged} in the log");
            self.differ("upstream", expected, logged);
        }
        let contacts = self.seen.contacts.iter().map(|contact| contact.local);
        let on_the_wire: BTreeSet<_> = self
            .seen
            .attempts
            .iter()
            .copied()
            .chain(contacts)
            .map(|address| address.to_string())
            .collect();
        // A client that is slow to speak counts as silent, which passes there: where it dialled is dialled,
        // and hears nothing before the verdict.
        let dialled = self.flow.dst.to_string();
        let only_dialled = self.open
            && on_the_wire.iter().all(|address| *address == dialled)
            && !self.seen.contacts.iter().any(Contact::spoke);
        let right = match expected {
            "-" => on_the_wire.is_empty() || only_dialled,
            _ => on_the_wire.contains(expected),
        };
        if !right {
            self.differ("upstream", expected, format!("{on_the_wire:?} on the wire"));
        }
        let elsewhere = self.seen.contacts.iter().map(|contact| contact.local.to_string());
        let elsewhere: Vec<_> = elsewhere.filter(|address| address != expected).collect();
        if let (Some(other), true) =
            (elsewhere.first(), !self.expected.contains_key("also_sent_to"))
            && expected != "-"
        {
            self.differ("upstream", expected, format!("{other} too"));
        }
    }

    fn tls(&mut self, expected: &Value) {
        let clients_own = usize::from(self.flow.first_bytes == FirstBytes::Tls);
        let contact = self.seen.contacts.iter().find(|contact| contact.spoke()).cloned();
        let layers = contact.as_ref().map_or(0, |contact| contact.layers);
        let hello = contact.and_then(|contact| contact.tls);
        for (name, value) in expected.as_object().into_iter().flatten() {
            let field = format!("upstream_tls.{name}");
            let hello = hello.as_ref();
            match name.as_str() {
                "originated" => self.equal(&field, value, (layers > clients_own).into()),
                "sni" => self.equal(&field, value, hello.and_then(|h| h.sni.clone()).into()),
                "alpn" => {
                    let alpn = hello.map(|hello| hello.alpn.clone()).unwrap_or_default();
                    self.equal(&field, value, alpn.into());
                }
                "client_certificate" => {
                    self.equal(&field, value, hello.is_some_and(|h| h.certificate).into());
                }
                // What is checked shows in what passes, which is the verdict.
                "verify" => {}
                _ => self.differ(&field, "a field of the format", "an unknown one"),
            }
        }
    }

    fn request(&mut self, field: &str, expected: &Value) {
        let requests = self.seen.contacts.iter().flat_map(|contact| &contact.requests);
        let Some(last) = requests.rev().find(|asked| asked.method != "CONNECT").cloned() else {
            // `-` stands for what is absent, here as everywhere.
            if expected != "-" {
                self.differ(field, expected, "no request");
            }
            return;
        };
        match field {
            "upstream_protocol" => {
                let want = expected.as_str().unwrap_or_default();
                if http2(want) != http2(last.version) {
                    self.differ(field, want, last.version);
                }
            }
            "upstream_path" => self.equal(field, expected, last.target.into()),
            "upstream_host_header" => self.equal(field, expected, last.host.into()),
            _ => self.headers(field, expected, &last.headers),
        }
    }

    /// Headers by name; null is an absent one.
    fn headers(&mut self, field: &str, expected: &Value, seen: &[(String, String)]) {
        for (name, value) in expected.as_object().into_iter().flatten() {
            let all = seen.iter().filter(|(have, _)| have.eq_ignore_ascii_case(name));
            let all: Vec<_> = all.map(|(_, value)| value.as_str()).collect();
            let found = if all.is_empty() { Value::Null } else { all.join(",").into() };
            self.equal(&format!("{field}.{name}"), value, found);
        }
    }

    fn connect(&mut self, expected: &Value) {
        let mut requests = self.seen.contacts.iter().flat_map(|contact| &contact.requests);
        let want = expected["method"].as_str().unwrap_or("CONNECT");
        let Some(asked) = requests.find(|asked| asked.method == want).cloned() else {
            return self.differ("connect_request", expected, "none");
        };
        let Asked { method, target, host, version, .. } = asked;
        let authority = if method == "CONNECT" { target } else { host };
        for (name, value) in expected.as_object().into_iter().flatten() {
            let field = format!("connect_request.{name}");
            match name.as_str() {
                "method" => self.equal(&field, value, method.clone().into()),
                "authority" => self.equal(&field, value, authority.clone().into()),
                "http_version" => {
                    if http2(value.as_str().unwrap_or_default()) != http2(version) {
                        self.differ(&field, value, version);
                    }
                }
                _ => self.differ(&field, "a field of the format", "an unknown one"),
            }
        }
    }

    fn also_sent_to(&mut self, expected: &Value) {
        let reached: Vec<_> =
            self.seen.contacts.iter().map(|contact| contact.local.to_string()).collect();
        for place in texts(expected) {
            if !reached.iter().any(|address| address == place) {
                self.differ("also_sent_to", place, format!("{reached:?}"));
            }
        }
    }

    /// Shares by upstream where a key is an address, else by cluster.
    fn distribution(&mut self, expected: &Value) {
        let tolerance = self.expected.get("tolerance").and_then(Value::as_f64).unwrap_or(0.05);
        let mut counts: BTreeMap<String, f64> = BTreeMap::new();
        for line in &self.seen.lines {
            for name in ["upstream_host", "upstream_cluster"] {
                let key = line.field(name).unwrap_or("-").to_owned();
                *counts.entry(key).or_default() += 1.0;
            }
        }
        let total = self.seen.lines.len().max(1) as f64;
        for (key, share) in expected.as_object().into_iter().flatten() {
            let share = share.as_f64().unwrap_or_default();
            let seen = counts.get(key).copied().unwrap_or_default() / total;
            if (seen - share).abs() > tolerance {
                self.differ(&format!("distribution.{key}"), share, format!("{seen:.3}"));
            }
        }
    }
}

/// One text, or a list of them.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(one) => vec![one.as_str()],
        other => other.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
    }
}

/// A text line with 0 for a duration that only says how busy the machine was. Patterns of what
/// ends at once have a 0 there, and a real clock may tick in between.
fn at_once(line: &str) -> Option<String> {
    let parsed = crate::log::Line::parse(line).ok()?;
    let (received, sent) = (parsed.field("BYTES_RECEIVED"), parsed.field("BYTES_SENT"));
    let duration = parsed.field("DURATION");
    let small = duration.parse::<u64>().is_ok_and(|ms| ms <= BUSY_MS);
    let counters = format!(" {received} {sent} {duration} ");
    small.then(|| line.replacen(&counters, &format!(" {received} {sent} 0 "), 1))
}

/// Whether a version, in any spelling, is HTTP/2.
fn http2(version: &str) -> bool {
    version.contains('2')
}

#[cfg(test)]
mod tests;
