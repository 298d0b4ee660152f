//! What the case's client sends: its first bytes, and its request.

use super::case::{FirstBytes, Flow, Http};
use crate::decide::RequestHead;
use crate::sniff::{Hello, Sniffer};

/// A request, taken apart as the HTTP library does.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    /// Of an absolute-form target or `:authority`.
    pub(super) authority: Option<String>,
    /// Every Host header.
    pub(super) hosts: Vec<String>,
    /// Path and query.
    pub(super) path: String,
    /// 10, 11 or 20.
    pub(super) version: u8,
    /// The other headers, names in lower case.
    pub(super) headers: Vec<(String, String)>,
}

impl Request {
    pub(super) fn of(http: &Http, first_bytes: FirstBytes) -> Self {
        let version = match (first_bytes, http.version) {
            (FirstBytes::H2c, _) => 20,
            (_, Some(version)) => version,
            (_, None) => 11,
        };
        let mut hosts = Vec::new();
        let mut headers = Vec::new();
        for (name, values) in &http.headers {
            let name = name.to_ascii_lowercase();
            for value in values.as_slice() {
                match name.as_str() {
                    "host" => hosts.push(value.clone()),
                    _ => headers.push((name.clone(), value.clone())),
                }
            }
        }
        let mut authority = None;
        match &http.host {
            Some(host) if version >= 20 => authority = Some(host.clone()),
            Some(host) => hosts.insert(0, host.clone()),
            None => {}
        }
        let mut path = http.path.clone();
        let absolute =
            ["http://", "https://"].iter().find_map(|scheme| http.path.strip_prefix(scheme));
        if http.method == "CONNECT" {
            authority = Some(std::mem::take(&mut path));
        } else if let Some(rest) = absolute {
            let at = rest.find(['/', '?']).unwrap_or(rest.len());
            authority = Some(rest[..at].to_owned());
            path = match &rest[at..] {
                "" => "/".into(),
                query if query.starts_with('?') => format!("/{query}"),
                full => full.into(),
            };
        }
        Self { method: http.method.clone(), authority, hosts, path, version, headers }
    }

    /// Runs `ask` with the head as decisions read it.
    pub(super) fn with_head<T>(&self, ask: impl FnOnce(&RequestHead<'_>) -> T) -> T {
        let hosts: Vec<&str> = self.hosts.iter().map(String::as_str).collect();
        ask(&RequestHead {
            method: &self.method,
            authority: self.authority.as_deref(),
            hosts: &hosts,
            path: &self.path,
            version: self.version,
            headers: &self.headers,
        })
    }

    /// What the log calls the authority.
    pub(super) fn host(&self) -> Option<&str> {
        self.authority.as_deref().or(self.hosts.first().map(String::as_str))
    }

    /// The Host without its port, if it is a name: what SNI and name checks go by (TLS-5).
    pub(super) fn name(&self) -> Option<String> {
        let host = self.host()?;
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        crate::decide::host::HostName::parse(name).ok().map(|name| name.to_string())
    }

    /// A header's values, joined.
    pub(super) fn header(&self, name: &str) -> Option<String> {
        let name = name.to_ascii_lowercase();
        let named = self.headers.iter().filter(|(have, _)| *have == name);
        let values: Vec<&str> = named.map(|(_, value)| value.as_str()).collect();
        (!values.is_empty()).then(|| values.join(","))
    }

    /// A query parameter, not decoded.
    pub(super) fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.path.split_once('?')?;
        let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find(|(have, _)| *have == name).map(|(_, value)| value.to_owned())
    }

    /// A cookie.
    pub(super) fn cookie(&self, name: &str) -> Option<String> {
        let all = self.header("cookie")?;
        let mut pairs = all.split(';').filter_map(|pair| pair.trim().split_once('='));
        pairs.find(|(have, _)| *have == name).map(|(_, value)| value.to_owned())
    }
}

/// What the sniffer makes of the client's first bytes; `None` where the client stays silent.
pub(super) fn hello(flow: &Flow, request: Option<&Request>) -> Option<Hello> {
    let bytes = match (flow.first_bytes, request) {
        (FirstBytes::None, _) => return None,
        (FirstBytes::H2c, _) => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        (FirstBytes::Http1, Some(request)) => {
            let minor = if request.version == 10 { 0 } else { 1 };
            let target = flow.http.as_ref().map_or("/", |http| http.path.as_str());
            format!("{} {target} HTTP/1.{minor}\r\n", request.method).into_bytes()
        }
        (FirstBytes::Http1 | FirstBytes::Raw, _) => vec![0x00, 0x01, 0xfe, 0xff],
        (FirstBytes::Tls, _) => client_hello(flow.sni.as_deref(), &flow.alpn),
    };
    let mut sniffer = Sniffer::default();
    // Bytes that never become certain are what a client that stops there would have sent.
    Some(sniffer.push(&bytes).unwrap_or(Hello::Silent))
}

/// A TLS 1.3 ClientHello (RFC 8446 section 4.1.2) as a common client sends it.
fn client_hello(sni: Option<&str>, alpn: &[String]) -> Vec<u8> {
    let mut extensions = Vec::new();
    let mut extension = |kind: u16, body: &[u8]| {
        extensions.extend(kind.to_be_bytes());
        extensions.extend(with_length(body));
    };
    if let Some(name) = sni {
        let entry = [&[0][..], &with_length(name.as_bytes())].concat();
        extension(0, &with_length(&entry));
    }
    if !alpn.is_empty() {
        let names: Vec<u8> = alpn
            .iter()
            .flat_map(|name| [&[short(name.len())][..], name.as_bytes()].concat())
            .collect();
        extension(16, &with_length(&names));
    }
    // supported_versions: TLS 1.3 and 1.2.
    extension(43, &[4, 3, 4, 3, 3]);
    let body = [
        &[3, 3][..],
        &[9; 32],
        &[0],
        &with_length(&[0x13, 0x01, 0xc0, 0x2f]),
        &[1, 0],
        &with_length(&extensions),
    ]
    .concat();
    let message = [&[1, 0][..], &with_length(&body)].concat();
    [&[22, 3, 1][..], &with_length(&message)].concat()
}

/// `bytes` behind their length in two bytes. Everything here is shorter than that allows, or it is
/// cut, and then the hello is malformed as it would be on the wire.
fn with_length(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], &bytes[..usize::from(length)]].concat()
}

fn short(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(yaml: &str) -> Flow {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn told(yaml: &str) -> Option<Hello> {
        let flow = flow(yaml);
        let request = flow.http.as_ref().map(|http| Request::of(http, flow.first_bytes));
        hello(&flow, request.as_ref())
    }

    /// The real sniffer reads what the client sends.
    #[test]
    fn first_bytes() {
        assert_eq!(told("{dst: '192.0.2.1:1', first_bytes: none}"), None);
        assert_eq!(told("{dst: '192.0.2.1:1', first_bytes: raw}"), Some(Hello::Opaque));
        let http = "http: {method: GET, path: /, host: a}";
        let of =
            |first: &str| told(&format!("{{dst: '192.0.2.1:1', first_bytes: {first}, {http}}}"));
        assert_eq!(of("http1"), Some(Hello::Http1));
        assert_eq!(of("h2c"), Some(Hello::Http2));
        let tls =
            "{dst: '192.0.2.1:1', first_bytes: tls, sni: A.Example.com, alpn: [h2, http/1.1]}";
        let Some(Hello::Tls(hello)) = told(tls) else { panic!("not TLS: {:?}", told(tls)) };
        assert_eq!(hello.sni.map(|name| name.to_string()).as_deref(), Some("a.example.com"));
        assert_eq!(hello.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        let bare = told("{dst: '192.0.2.1:1', first_bytes: tls}");
        let Some(Hello::Tls(hello)) = bare else { panic!("not TLS: {bare:?}") };
        assert_eq!((hello.sni, hello.alpn.len(), hello.ech), (None, 0, false));
    }

    #[test]
    fn requests_are_taken_apart() {
        let request =
            |yaml: &str, first| Request::of(&serde_saphyr::from_str(yaml).unwrap(), first);
        let plain = request(
            "{path: '/a?b=c&d', host: 'x.com:80', headers: {Cookie: 'k=v; l=w'}}",
            FirstBytes::Http1,
        );
        assert_eq!((plain.hosts.as_slice(), plain.version), (&["x.com:80".to_owned()][..], 11));
        assert_eq!(plain.name().as_deref(), Some("x.com"));
        assert_eq!(
            (plain.query("b"), plain.query("d"), plain.query("e")),
            (Some("c".into()), Some("".into()), None)
        );
        assert_eq!((plain.cookie("l").as_deref(), plain.cookie("m")), (Some("w"), None));
        let absolute = request("{path: 'http://y.com?q', host: x.com}", FirstBytes::Http1);
        assert_eq!((absolute.authority.as_deref(), absolute.path.as_str()), (Some("y.com"), "/?q"));
        let h2 = request("{path: /, host: x.com, version: '1.1'}", FirstBytes::H2c);
        assert_eq!((h2.version, h2.hosts.len(), h2.authority.as_deref()), (20, 0, Some("x.com")));
        let connect =
            request("{method: CONNECT, path: 'z.com:443', host: 'z.com:443'}", FirstBytes::Http1);
        assert_eq!((connect.authority.as_deref(), connect.path.as_str()), (Some("z.com:443"), ""));
    }
}
