//! Routes that are answered here: redirects and direct responses (VS-24, VS-25).

use super::super::super::base64;
use super::super::super::fields::Located;
use super::super::super::node::Node;
use super::super::super::reader::Reader;
use super::super::super::service_entry::one_of;
use crate::decide::uri::Redirect;

/// `redirect` (VS-24, VSV-12); the flag says that the port is the request's.
pub(in super::super) fn redirect(r: &mut Reader<'_>, node: &Located<&Node>) -> (Redirect, bool) {
    let mut f = r.fields(node);
    let code = r.int(&mut f, "redirectCode").filter(|code| code.value != 0);
    if let Some(code) = &code
        && !(300..=399).contains(&code.value)
    {
        r.reject(code, "must lie between 300 and 399 (VSV-12)");
    }
    let honoured = code.as_ref().and_then(|code| u16::try_from(code.value).ok());
    let honoured = honoured.filter(|code| [301, 302, 303, 307, 308].contains(code));
    if let Some(code) = code.as_ref().filter(|_| honoured.is_none()) {
        r.warn(code, "not honoured: 301 is sent (VSV-12)");
    }
    let uri = r.some_text(&mut f, "uri");
    let prefix = r.some_text(&mut f, "uriPrefix").or_else(|| r.some_text(&mut f, "prefixRewrite"));
    if uri.is_some()
        && let Some(prefix) = &prefix
    {
        r.reject(prefix, "give the whole uri or its prefix, not both");
    }
    let port = r.port(&mut f, "port");
    let derive = [("FROM_PROTOCOL_DEFAULT", false), ("FROM_REQUEST_PORT", true)];
    let derive = one_of(f.text("derivePort", r.cx, r.out), &derive, r.cx, r.out);
    if port.is_some() && derive.is_some() {
        r.reject(node, "give port or derivePort, not both");
    }
    let scheme = r.some_text(&mut f, "scheme");
    if let Some(scheme) = &scheme
        && !matches!(scheme.value.as_str(), "http" | "https")
    {
        r.reject(scheme, "scheme is http or https");
    }
    let authority = r.some_text(&mut f, "authority");
    if uri.is_none()
        && prefix.is_none()
        && authority.is_none()
        && scheme.is_none()
        && port.is_none()
        && derive.is_none()
    {
        r.reject(node, "says nothing: give uri, authority, port or scheme");
    }
    r.finish(f);
    let redirect = Redirect {
        status: honoured.unwrap_or(301),
        uri: uri.map(|uri| uri.value),
        prefix: prefix.map(|prefix| prefix.value),
        authority: authority.map(|authority| authority.value),
        port,
        scheme: scheme.map(|scheme| scheme.value),
    };
    (redirect, derive == Some(true))
}

/// `directResponse` (VS-25).
pub(in super::super) fn direct_response(
    r: &mut Reader<'_>,
    node: &Located<&Node>,
) -> (u16, Vec<u8>) {
    let mut f = r.fields(node);
    let status = r.int(&mut f, "status");
    let found = status.as_ref().and_then(|status| u16::try_from(status.value).ok());
    let found = found.filter(|status| (200..=599).contains(status));
    match (&status, found) {
        (Some(status), None) => r.reject(status, "must lie between 200 and 599"),
        (None, _) => r.reject(node, "status is required"),
        _ => {}
    }
    let mut body = Vec::new();
    if let Some(at) = f.take("body") {
        let mut inner = r.fields(&at);
        let text = r.text(&mut inner, "string");
        let bytes = r.text(&mut inner, "bytes");
        r.finish(inner);
        if let (Some(_), Some(bytes)) = (&text, &bytes) {
            r.reject(bytes, "give string or bytes, not both");
        }
        let decoded = bytes.map(|bytes| {
            base64::decode(&bytes.value).unwrap_or_else(|| {
                r.reject(&bytes, "not base64");
                Vec::new()
            })
        });
        body = text.map(|text| text.value.into_bytes()).or(decoded).unwrap_or_default();
        if body.len() > 1 << 20 {
            r.reject(&at, "larger than 1 MiB");
        } else if body.len() > 100 << 10 {
            r.warn(&at, "larger than 100 KiB");
        }
    }
    r.finish(f);
    (found.unwrap_or(500), body)
}
