//! Which records are written at all: a CEL expression over what is known of them (TEL-5).
//!
//! The attributes are Envoy's. What a record does not have is absent, so that `has(request.path)`
//! tells requests from connections; an expression that cannot be evaluated lets nothing through.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::thread;

use cel::objects::{Key, Map};
use cel::{Context, Env, Program, Value};

use super::Record;
use super::operators::Head;
use super::values::{ALWAYS_THERE, LONG_FLAGS, header_value, short_flag};
use super::wanted::Wanted;

/// Longest expression, in bytes.
const MAX_LENGTH: usize = 4096;
/// Most brackets and conditions of an expression: the parser nests its calls for each.
const MAX_NESTING: usize = 64;
/// The parser's stack, which it needs much of: [`MAX_NESTING`] levels take about a tenth of this.
const PARSER_STACK: usize = 64 << 20;

/// CEL's own functions.
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// A compiled `filter.expression`.
pub struct Filter {
    source: String,
    program: Program,
    request_headers: bool,
    response_headers: bool,
    trailers: bool,
    tls: bool,
}

/// Why an expression cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column} of the expression: {message}")]
pub struct FilterError {
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Filter").field(&self.source).finish()
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Filter {
    /// Compiles an expression.
    ///
    /// # Errors
    /// It does not parse, or is longer or deeper than anybody needs.
    pub fn parse(expression: &str) -> Result<Self, FilterError> {
        let at_start = |message: String| FilterError { line: 1, column: 1, message };
        if expression.len() > MAX_LENGTH {
            return Err(at_start(format!("longer than {MAX_LENGTH} bytes")));
        }
        if nesting(expression) > MAX_NESTING {
            return Err(at_start(format!("more than {MAX_NESTING} brackets and conditions")));
        }
        let program = compile(expression)?;
        let names = |what: &str| expression.contains(what);
        Ok(Self {
            source: expression.to_owned(),
            request_headers: (names("headers") || names("referer")) && names("request"),
            response_headers: names("headers") && names("response"),
            trailers: names("trailers"),
            // Whatever way an attribute of it is named.
            tls: names("upstream"),
            program,
        })
    }

    /// Whether `record` is written.
    pub fn admits(&self, record: &Record) -> bool {
        let mut context = Context::with_env(Arc::clone(&ENV));
        for (name, attributes) in attributes(record) {
            context.add_variable_from_value(name, attributes);
        }
        matches!(self.program.execute(&context), Ok(Value::Bool(true)))
    }

    /// Asks for what the expression may look at.
    pub(super) fn want(&self, wanted: &mut Wanted) {
        wanted.tls |= self.tls;
        for (asked, head) in [
            (self.request_headers, Head::Request),
            (self.response_headers, Head::Response),
            (self.trailers, Head::Trailer),
        ] {
            if asked {
                wanted.add_all(head);
            }
        }
    }
}

/// Parses on a thread of its own, for the sake of its stack.
fn compile(expression: &str) -> Result<Program, FilterError> {
    let failed = |message: String| FilterError { line: 1, column: 1, message };
    thread::scope(|scope| {
        let parser = thread::Builder::new()
            .stack_size(PARSER_STACK)
            .spawn_scoped(scope, || ENV.compile(expression).map_err(|errors| first(&errors)))
            .map_err(|error| failed(format!("no thread to parse it: {error}")))?;
        parser.join().unwrap_or_else(|_| Err(failed("the parser failed on it".into())))
    })
}

/// An upper bound on how deep the parser goes.
fn nesting(expression: &str) -> usize {
    expression.chars().filter(|c| matches!(c, '(' | '[' | '{' | '?' | '!' | '-')).count()
}

/// The first of the parser's complaints, without its list of what it would have liked.
fn first(errors: &cel::ParseErrors) -> FilterError {
    let syntax = |error: &&cel::ParseError| error.msg.starts_with("Syntax error");
    let error = errors.errors.iter().filter(syntax).chain(&errors.errors).next();
    let Some(error) = error else {
        return FilterError { line: 1, column: 1, message: "does not parse".into() };
    };
    let message = error.msg.split(" expecting {").next().unwrap_or_default();
    let positive = |n: isize| usize::try_from(n).unwrap_or(1).max(1);
    FilterError {
        line: positive(error.pos.0),
        column: positive(error.pos.1),
        message: message.replace('\n', " "),
    }
}

/// Fields of one attribute, absent ones left out.
#[derive(Default)]
struct Attributes(HashMap<Key, Value>);

impl Attributes {
    fn with(mut self, name: &str, value: Option<impl Into<Value>>) -> Self {
        if let Some(value) = value {
            self.0.insert(name.into(), value.into());
        }
        self
    }

    fn text(self, name: &str, value: Option<&str>) -> Self {
        self.with(name, value.filter(|text| !text.is_empty()).map(str::to_owned))
    }
}

impl From<Attributes> for Value {
    fn from(attributes: Attributes) -> Self {
        Value::Map(Map { map: Arc::new(attributes.0) })
    }
}

fn attributes(record: &Record) -> [(&'static str, Value); 8] {
    let address = |at: Option<std::net::SocketAddr>| {
        Attributes::default()
            .with("address", at.map(|at| at.to_string()))
            .with("port", at.map(|at| i64::from(at.port())))
    };
    let tls = record.more.upstream_tls.as_ref();
    let upstream = match &record.more.upstream_socket {
        Some(path) => Attributes::default().with("address", Some(path.display().to_string())),
        None => address(record.upstream_host),
    };
    let upstream = upstream
        .with("local_address", record.upstream_local_address.map(|at| at.to_string()))
        .text("transport_failure_reason", record.upstream_transport_failure_reason.as_deref())
        .text("tls_version", tls.and_then(|tls| tls.version.as_deref()))
        .text("subject_peer_certificate", tls.and_then(|tls| tls.peer_subject.as_deref()))
        .text("dns_san_peer_certificate", tls.and_then(|tls| tls.peer_dns_san.as_deref()))
        .text("uri_san_peer_certificate", tls.and_then(|tls| tls.peer_uri_san.as_deref()))
        .with("request_attempt_count", record.more.attempts.map(i64::from));
    let connection = Attributes::default()
        .with("mtls", Some(false))
        .with("id", record.more.connection_id.map(signed))
        .text("requested_server_name", record.requested_server_name.as_deref())
        .text("termination_details", record.connection_termination_details.as_deref());
    let xds = Attributes::default()
        .text("cluster_name", record.upstream_cluster.as_ref().map(|c| &*c.0))
        .text("route_name", record.route_name.as_deref());
    [
        ("request", request(record).into()),
        ("response", response(record).into()),
        ("connection", connection.into()),
        ("upstream", upstream.into()),
        ("source", address(Some(record.downstream_remote_address)).into()),
        ("destination", address(Some(record.downstream_local_address)).into()),
        ("xds", xds.into()),
        ("metadata", Attributes::default().into()),
    ]
}

fn request(record: &Record) -> Attributes {
    let Some(http) = &record.http else { return Attributes::default() };
    let path = Some(http.path.as_str());
    let url_path = path.map(|path| path.split('?').next().unwrap_or_default());
    let query = path.and_then(|path| path.split_once('?')).map(|(_, query)| query);
    let header = |name| header_value(record, Head::Request, name);
    let received = signed(record.bytes_received);
    Attributes::default()
        .text("path", path)
        .text("url_path", url_path)
        .text("query", query)
        .text("host", http.authority.as_deref())
        .text("scheme", Some("http"))
        .text("method", Some(&http.method))
        .with("headers", Some(headers(record, Head::Request, &record.more.request_headers)))
        .text("referer", header("referer").as_deref())
        .text("useragent", http.user_agent.as_deref())
        .text("id", http.request_id.as_deref())
        .text("protocol", Some(http.protocol))
        .with("time", time(record.start).map(|time| Value::Timestamp(time.fixed_offset())))
        .with("duration", chrono::Duration::from_std(record.duration).ok().map(Value::Duration))
        .with("size", Some(received))
        .with("total_size", Some(received))
}

fn response(record: &Record) -> Attributes {
    let http = record.http.is_some();
    let code = (http && record.response_code > 0).then(|| i64::from(record.response_code));
    let carried = |carried, head| http.then(|| headers(record, head, carried));
    let sent = signed(record.bytes_sent);
    let mut mask = 0_i64;
    for flag in &record.flags {
        let short = short_flag(flag);
        let bit = LONG_FLAGS.iter().position(|(known, _)| *known == short);
        mask |= bit.map_or(0, |bit| 1 << bit);
    }
    Attributes::default()
        .with("code", code)
        .text("code_details", record.response_code_details.as_deref())
        .with("flags", Some(mask))
        .with("headers", carried(&record.more.response_headers, Head::Response))
        .with("trailers", carried(&record.more.response_trailers, Head::Trailer))
        .with("size", Some(sent))
        .with("total_size", Some(sent))
        .with(
            "backend_latency",
            record
                .http
                .as_ref()
                .and_then(|http| http.upstream_service_time)
                .and_then(|time| chrono::Duration::from_std(time).ok().map(Value::Duration)),
        )
}

/// The carried headers and those that every record has.
fn headers(record: &Record, head: Head, carried: &[(String, String)]) -> Attributes {
    let mut all = Attributes::default();
    for name in ALWAYS_THERE {
        all = all.text(name, header_value(record, head, name).as_deref());
    }
    for (name, value) in carried {
        all = all.text(name, Some(value));
    }
    all
}

fn time(at: std::time::SystemTime) -> Option<chrono::DateTime<chrono::Utc>> {
    let since = at.duration_since(std::time::SystemTime::UNIX_EPOCH).ok()?;
    chrono::DateTime::from_timestamp(i64::try_from(since.as_secs()).ok()?, since.subsec_nanos())
}

/// CEL's integers are signed; no count here comes near the difference.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
