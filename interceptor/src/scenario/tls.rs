//! TLS that the proxy begins, in the model world: whether it comes about, and what the server sees.

use super::case::{Network, Secret, Server};
use super::client::Request;
use super::observed::SeenTls;
use super::world::Failure;
use crate::decide::traffic::{Identity, Origination, Trust, UpstreamProtocol, Verify};

/// Our handshake with the server: TLS-6 to TLS-10 against what it shows.
pub(super) fn handshake(
    network: &Network,
    tls: &Origination,
    name: Option<&str>,
    port: u16,
) -> Result<(), Failure> {
    let fail = |why| Err(Failure::Tls(why));
    let unready = |why| Err(Failure::Unready(why));
    if tls.verify == Verify::Impossible {
        return unready("no usable secret");
    }
    let mut lists_server = false;
    let identity = match &tls.identity {
        Some(Identity::Secret(name)) => Some(name),
        _ => None,
    };
    let trust = match &tls.trust {
        Trust::Secret(name) => Some(name),
        _ => None,
    };
    for named in identity.into_iter().chain(trust) {
        let bare = named.rsplit(['/', ':']).next().unwrap_or(named);
        match network.secrets.iter().find(|secret| secret.name() == bare) {
            None => return unready("Secret is not supplied by SDS"),
            Some(Secret::FakeCred) => return unready("malformed secret"),
            Some(Secret::CredWithCrl) => lists_server = true,
            Some(Secret::GoodCred | Secret::CredWithDummyCrl) => {}
        }
    }
    if port == 80 {
        return fail("WRONG_VERSION_NUMBER");
    }
    lists_server |= tls.crl.is_some() && network.server == Server::Revoked;
    let chain = !lists_server && network.server != Server::SelfSigned;
    let asked = tls.sni.as_deref().or(name);
    let shown = match &network.server {
        Server::NamedOnly(name) => Some(name.as_str()),
        _ => asked,
    };
    let named = match tls.subject_alt_names.as_slice() {
        [] => shown == asked,
        names => shown.is_some_and(|shown| names.iter().any(|n| n.eq_ignore_ascii_case(shown))),
    };
    let verified = match tls.verify {
        Verify::Nothing => true,
        Verify::ChainOnly => chain,
        Verify::ChainAndName | Verify::Impossible => chain && named,
    };
    if !verified {
        return fail("CERTIFICATE_VERIFY_FAILED");
    }
    if network.server == Server::WantsClientCertificate && tls.identity.is_none() {
        return fail("TLSV1_ALERT_CERTIFICATE_REQUIRED");
    }
    Ok(())
}

/// What the server sees of TLS that the proxy begins.
pub(super) fn seen_tls(
    tls: &Origination,
    protocol: UpstreamProtocol,
    request: Option<&Request>,
    name: Option<&str>,
) -> SeenTls {
    let alpn = match (request, protocol) {
        (None, _) => Vec::new(),
        (Some(_), UpstreamProtocol::Http1) => vec!["http/1.1"],
        (Some(_), UpstreamProtocol::Http2) => vec!["h2"],
        (Some(request), UpstreamProtocol::AsClient) => {
            vec![if request.version >= 20 { "h2" } else { "http/1.1" }]
        }
    };
    // TLS-5.
    let sni = tls.sni.clone().or_else(|| name.map(str::to_owned));
    let trust = match &tls.trust {
        Trust::System => None,
        Trust::File(_) => Some("file CA"),
        Trust::Secret(_) => Some("credential CA"),
    };
    let mut verify: Vec<String> = match (tls.verify, tls.subject_alt_names.as_slice()) {
        (Verify::Nothing, _) => vec!["none".into()],
        (Verify::ChainOnly, _) => vec!["chain only".into()],
        (_, []) => vec![trust.unwrap_or("system").into()],
        (_, names) => names.iter().map(|name| format!("chain, name {name}")).collect(),
    };
    // The one name that would be checked of itself.
    if sni.as_ref().is_some_and(|sni| tls.subject_alt_names == [sni.as_str()]) {
        verify.push(trust.unwrap_or("system").into());
    }
    if tls.verify != Verify::Nothing {
        // The vocabulary has one word for where trust comes from and what is checked.
        verify.extend(trust.map(str::to_owned));
        verify.dedup();
    }
    SeenTls { sni, alpn, verify, client_certificate: tls.identity.is_some() }
}
