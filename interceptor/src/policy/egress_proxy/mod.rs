//! `egressProxy` of an InterceptorConfig: upstream proxies, and what leaves through which of them.

mod pattern;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use super::fields::{Context, Fields, Findings, Located};
use super::kubernetes::SecretStore;
use super::node::Node;
use super::service_entry::one_of;
use crate::decide::Place;
use crate::decide::door::{DoorRule, Doors, EgressProxy, Login, Pattern, PlainHttp, Speaks};
use crate::decide::host::HostName;
use crate::decide::traffic::{Identity, Origination, Trust, Verify};
use pattern::Dialect;

/// `egressProxy` as written.
#[derive(Debug, Clone)]
pub(super) struct EgressProxies {
    /// Where its Secrets are.
    namespace: Arc<str>,
    proxies: Vec<EgressProxy>,
    rules: Vec<Rule>,
    plain_http: PlainHttp,
}

/// One of `rules`, or `noProxy`.
#[derive(Debug, Clone)]
struct Rule {
    to: Vec<Pattern>,
    /// Positions in the list of proxies; empty: direct.
    proxies: Vec<usize>,
    /// `None`: as all.
    plain_http: Option<PlainHttp>,
}

impl EgressProxies {
    /// Reads `egressProxy` of a resource in `namespace`.
    pub(super) fn read(
        mut f: Fields<'_>,
        namespace: Arc<str>,
        cx: &Context,
        out: &mut Findings,
    ) -> Self {
        let (at, path) = (f.at(), f.path_of("proxies"));
        let mut proxies: Vec<EgressProxy> = Vec::new();
        for node in f.list("proxies", cx, out) {
            let field = format!("{}.name", node.path);
            let Some(proxy) = proxy(&node, cx, out) else { continue };
            if proxies.iter().any(|other| other.name == proxy.name) {
                let message = format!("a second proxy called \"{}\"; rename one", proxy.name);
                out.errors.push(cx.notice(node.at, &field, message));
            }
            proxies.push(proxy);
        }
        if proxies.is_empty() {
            out.errors.push(cx.notice(at, &path, "list at least one proxy"));
        }
        let mut rules = Vec::new();
        if let Some(list) = f.text("noProxy", cx, out) {
            let items = list.value.split(',').map(str::trim).filter(|item| !item.is_empty());
            let items: Vec<_> = items
                .map(|item| Located {
                    value: item.to_owned(),
                    at: list.at,
                    path: list.path.clone(),
                })
                .collect();
            let to = patterns(items, Dialect::NoProxy, cx, out);
            if !to.is_empty() {
                rules.push(Rule { to, proxies: Vec::new(), plain_http: None });
            }
        }
        let plain_http = plain_http(&mut f, cx, out).unwrap_or_default();
        for node in f.list("rules", cx, out) {
            if rules.last().is_some_and(|rule| rule.to.is_empty()) {
                let message = "never reached: the rule before it is for every host";
                out.warnings.push(cx.notice(node.at, &node.path, message));
            }
            rules.extend(rule(&node, &proxies, cx, out));
        }
        f.finish(cx, out);
        Self { namespace, proxies, rules, plain_http }
    }

    /// The doors that it makes; whatever no rule names leaves through the proxies, in their order.
    pub(super) fn doors(&self, secrets: &SecretStore) -> Doors {
        let keyring = secrets.keyring(&self.namespace);
        let with_login = |proxy: &EgressProxy| {
            let mut proxy = proxy.clone();
            if let Some(Login::Secret(name, found)) = &mut proxy.login {
                *found = keyring.get(name);
            }
            Arc::new(proxy)
        };
        let proxies: Vec<_> = self.proxies.iter().map(with_login).collect();
        let rule = |rule: &Rule| DoorRule {
            to: rule.to.clone(),
            proxies: rule.proxies.iter().filter_map(|at| proxies.get(*at)).cloned().collect(),
            plain_http: rule.plain_http.unwrap_or(self.plain_http),
        };
        let rest = DoorRule {
            to: Vec::new(),
            proxies: proxies.iter().cloned().collect(),
            plain_http: self.plain_http,
        };
        Doors { rules: self.rules.iter().map(rule).chain([rest]).collect() }
    }
}

fn plain_http(f: &mut Fields<'_>, cx: &Context, out: &mut Findings) -> Option<PlainHttp> {
    let names = [("absolute-form", PlainHttp::AbsoluteForm), ("CONNECT", PlainHttp::Connect)];
    let found = f.text("plainHTTP", cx, out);
    one_of(found, &names, cx, out)
}

fn rule(
    node: &Located<&Node>,
    proxies: &[EgressProxy],
    cx: &Context,
    out: &mut Findings,
) -> Option<Rule> {
    let mut f = Fields::of(node.value, node.path.clone(), cx, out);
    let named = f.has("hosts");
    let hosts = f.texts("hosts", cx, out);
    if named && hosts.is_empty() {
        let message = "an empty list is for no host; leave hosts out for every host";
        out.errors.push(cx.notice(node.at, &f.path_of("hosts"), message));
    }
    let to = patterns(hosts, Dialect::Hosts, cx, out);
    let direct = f.boolean("direct", cx, out);
    let names = f.texts("proxies", cx, out);
    let plain_http = plain_http(&mut f, cx, out);
    f.finish(cx, out);
    let mut chosen = Vec::new();
    for name in &names {
        match proxies.iter().position(|proxy| *proxy.name == *name.value) {
            Some(at) => chosen.push(at),
            None => {
                let known: Vec<&str> = proxies.iter().map(|proxy| &*proxy.name).collect();
                let message = format!(
                    "no proxy is called \"{}\"; there are {}",
                    name.value,
                    known.join(", ")
                );
                out.errors.push(cx.notice(name.at, &name.path, message));
            }
        }
    }
    let direct = direct.is_some_and(|direct| direct.value);
    if direct != names.is_empty() {
        let message = "needs either direct: true or a list of proxies";
        out.errors.push(cx.notice(node.at, &node.path, message));
        return None;
    }
    Some(Rule { to, proxies: chosen, plain_http })
}

fn patterns(
    items: Vec<Located<String>>,
    dialect: Dialect,
    cx: &Context,
    out: &mut Findings,
) -> Vec<Pattern> {
    let mut patterns = Vec::new();
    for item in items {
        match pattern::parse(&item.value, dialect) {
            Ok(pattern) => patterns.push(pattern),
            Err(why) => {
                let message = format!("\"{}\": {why}", item.value);
                out.errors.push(cx.notice(item.at, &item.path, message));
            }
        }
    }
    patterns
}

/// One of `proxies`; `None` where it is of no use, which was said then.
fn proxy(node: &Located<&Node>, cx: &Context, out: &mut Findings) -> Option<EgressProxy> {
    let mut f = Fields::of(node.value, node.path.clone(), cx, out);
    let (name, url) = (f.text("name", cx, out), f.text("url", cx, out));
    let file = f.text("credentialsFile", cx, out);
    let secret = f.text("credentialName", cx, out);
    let tls = f.take("tls");
    for (missing, field) in [(name.is_none(), "name"), (url.is_none(), "url")] {
        if missing {
            out.errors.push(cx.notice(node.at, &f.path_of(field), "missing"));
        }
    }
    f.finish(cx, out);
    if let (Some(_), Some(secret)) = (&file, &secret) {
        let message = "credentialsFile and credentialName exclude each other; keep one";
        out.errors.push(cx.notice(secret.at, &secret.path, message));
    }
    let login = match (file, secret) {
        (Some(file), _) => Some(Login::File(PathBuf::from(file.value))),
        (None, Some(secret)) => Some(Login::Secret(secret.value, None)),
        (None, None) => None,
    };
    let (name, url) = (name?, url?);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.value.is_empty() || name.value.len() > NAME_MAX || !name.value.chars().all(plain) {
        let message = "a name has 1 to 63 letters, digits, '-', '_' and '.'";
        out.errors.push(cx.notice(name.at, &name.path, message));
    }
    let Address { scheme, place, port } = match address(&url.value) {
        Ok(address) => address,
        // The text stays unsaid: there may be a password in it.
        Err(why) => {
            out.errors.push(cx.notice(url.at, &url.path, why));
            return None;
        }
    };
    let speaks = match (scheme, tls) {
        (Scheme::Https, tls) => Speaks::Https(Arc::new(origination(tls, cx, out))),
        (Scheme::Hbone, tls) => gateway(node, tls, login.is_some(), cx, out),
        (other, tls) => {
            if let Some(tls) = tls {
                let message = "TLS to the proxy needs a url with https; correct it, or remove tls";
                out.errors.push(cx.notice(tls.at, &tls.path, message));
            }
            if other == Scheme::Http { Speaks::Http } else { Speaks::Socks5 }
        }
    };
    Some(EgressProxy { name: name.value.into(), speaks, place, port, login })
}

/// A gateway: TLS with a certificate on both sides is what it knows us by.
fn gateway(
    node: &Located<&Node>,
    tls: Option<Located<&Node>>,
    has_login: bool,
    cx: &Context,
    out: &mut Findings,
) -> Speaks {
    let tls = origination(tls, cx, out);
    let mut wrong = |field: &str, message: &str| {
        let path = format!("{}.{field}", node.path);
        out.errors.push(cx.notice(node.at, &path, message));
    };
    if tls.identity.is_none() {
        let message =
            "a gateway knows a node by its certificate; set clientCertificate and privateKey";
        wrong("tls", message);
    }
    if tls.trust == Trust::System {
        wrong("tls.caCertificates", "name the authority that signs the gateway's certificate");
    }
    if has_login {
        wrong("url", "a gateway takes no user and password; remove the credentials");
    }
    Speaks::Gateway(Arc::new(tls))
}

/// As long as a label.
const NAME_MAX: usize = 63;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
    Socks5,
    Hbone,
}

/// Where a proxy is.
struct Address {
    scheme: Scheme,
    place: Place,
    port: u16,
}

/// Reads a proxy's url, as curl and others have it.
fn address(url: &str) -> Result<Address, &'static str> {
    const FORM: &str = "not a proxy's url; write it like http://proxy.corp.example:3128";
    let (scheme, rest) = url.split_once("://").ok_or(FORM)?;
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        // Names are resolved by the proxy, whichever of the two is written.
        "socks5" | "socks5h" => Scheme::Socks5,
        "hbone" => Scheme::Hbone,
        _ => return Err("unknown scheme; use http, https, socks5 or hbone"),
    };
    if rest.contains('@') {
        return Err(
            "no user and password here, where everybody reads them; use credentialsFile or \
                    credentialName",
        );
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let uri: http::uri::Authority = rest.parse().map_err(|_| FORM)?;
    let port = uri.port_u16().filter(|port| *port > 0).ok_or("the port is missing")?;
    let host = uri.host();
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let place = match literal.parse::<std::net::IpAddr>() {
        Ok(ip) => Place::Ip(ip.to_canonical()),
        Err(_) => Place::Name(HostName::parse(host).map_err(|why| why.0)?),
    };
    Ok(Address { scheme, place, port })
}

/// `tls` of a proxy.
fn origination(tls: Option<Located<&Node>>, cx: &Context, out: &mut Findings) -> Origination {
    let Some(tls) = tls else { return Origination::default() };
    let mut f = Fields::of(tls.value, tls.path.clone(), cx, out);
    let mut path = |field: &str| f.text(field, cx, out).map(|path| PathBuf::from(path.value));
    let (ca, crl) = (path("caCertificates"), path("caCrl"));
    let (certificate, key) = (path("clientCertificate"), path("privateKey"));
    let sni = f.text("sni", cx, out);
    let names = f.texts("subjectAltNames", cx, out);
    if let Some(sni) = sni.as_ref().filter(|sni| HostName::parse(&sni.value).is_err()) {
        out.errors.push(cx.notice(sni.at, &sni.path, "not a host name"));
    }
    f.finish(cx, out);
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(Identity::Files { certificate, key }),
        (None, None) => None,
        _ => {
            let message = "clientCertificate and privateKey need each other";
            out.errors.push(cx.notice(tls.at, &tls.path, message));
            None
        }
    };
    Origination {
        sni: sni.map(|sni| sni.value),
        subject_alt_names: names.into_iter().map(|name| name.value).collect(),
        trust: ca.map_or(Trust::System, Trust::File),
        identity,
        crl,
        verify: Verify::ChainAndName,
    }
}
