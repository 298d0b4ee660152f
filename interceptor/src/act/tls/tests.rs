//! Handshakes with real servers: what is sent, and what is refused (T-44).

use std::collections::HashMap;

use rcgen::{DnType, ExtendedKeyUsagePurpose, SanType, SerialNumber};
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::testing::{Authority, Leaf, NoSecrets, REVOKED, Seen, Server, serve};
use super::*;
use crate::decide::traffic::{Identity, Trust};
use crate::policy::Credentials;

async fn hello(leaf: Leaf, clients: Option<&Authority>) -> Server {
    serve(leaf, clients, |mut stream| async move {
        let _ = stream.write_all(b"hi").await;
        let _ = stream.shutdown().await;
    })
    .await
}

/// Connects as `origination` says; the server's bytes, or what the log would say.
async fn outcome(
    originator: &Originator,
    server: &Server,
    origination: &Origination,
    host: Option<&str>,
    alpn: Alpn,
) -> Result<String, String> {
    let connect = async {
        let handshake = originator.prepare(origination, host, alpn).await?;
        let stream = TcpStream::connect(server.at).await.expect("connects");
        let mut stream = handshake.run(stream).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.map_err(TlsError::Handshake)?;
        Ok(text)
    };
    connect.await.map_err(|error: TlsError| error.details())
}

fn originator() -> Originator {
    Originator::new(Arc::new(NoSecrets))
}

/// T-44, TLS-6, TLS-7, TLS-8, TLS-10.
#[tokio::test]
async fn what_is_verified() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let now = OffsetDateTime::from(crate::clock::wall());
    let plain = || authority.leaf(&["a.com", "*.b.com", "127.0.0.1"], |_| {});
    let (trusted, system) = (authority.trusted(), Origination::default());
    let with_crl =
        Origination { crl: Some(authority.file("crl.pem", &authority.crl())), ..trusted.clone() };
    let chain_only = Origination { verify: Verify::ChainOnly, ..trusted.clone() };
    let nothing = Origination { verify: Verify::Nothing, ..Origination::default() };
    let named = |names: &[&str]| Origination {
        subject_alt_names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..trusted.clone()
    };
    let spiffe = || {
        authority.leaf(&["x.com"], |params| {
            let uri = "spiffe://cluster/ns/a".to_owned().try_into().expect("a URI");
            params.subject_alt_names.push(SanType::URI(uri));
        })
    };
    let sni = Origination { sni: Some("a.com".into()), ..trusted.clone() };

    // Leaf, rule, Host, expected: "" is success, else a piece of the reason.
    let cases: Vec<(&str, Leaf, &Origination, Option<&str>, &str)> = vec![
        ("right", plain(), &trusted, Some("a.com"), ""),
        ("right, with a port", plain(), &trusted, Some("a.com:8443"), ""),
        ("wildcard", plain(), &trusted, Some("x.b.com"), ""),
        ("address", plain(), &trusted, Some("127.0.0.1"), ""),
        ("other address", plain(), &trusted, Some("127.0.0.2:80"), "another_name"),
        ("wrong name", plain(), &trusted, Some("c.com"), "another_name"),
        ("wildcard too deep", plain(), &trusted, Some("x.y.b.com"), "another_name"),
        ("sni stands in for the Host", plain(), &sni, None, ""),
        ("Host before sni", plain(), &sni, Some("c.com"), "another_name"),
        ("chain only", plain(), &chain_only, Some("c.com"), ""),
        (
            "name in CN only",
            authority
                .leaf(&[], |params| params.distinguished_name.push(DnType::CommonName, "a.com")),
            &trusted,
            Some("a.com"),
            "another_name",
        ),
        (
            "expired",
            authority.leaf(&["a.com"], |params| {
                params.not_before = now - Duration::days(2);
                params.not_after = now - Duration::days(1);
            }),
            &trusted,
            Some("a.com"),
            "expired",
        ),
        (
            "not yet valid",
            authority.leaf(&["a.com"], |params| params.not_before = now + Duration::days(1)),
            &trusted,
            Some("a.com"),
            "not_yet_valid",
        ),
        (
            "unknown CA",
            stranger.leaf(&["a.com"], |_| {}),
            &trusted,
            Some("a.com"),
            "unknown_issuer",
        ),
        (
            "unknown CA, chain only",
            stranger.leaf(&["a.com"], |_| {}),
            &chain_only,
            Some("a.com"),
            "unknown_issuer",
        ),
        ("the system's roots do not know it", plain(), &system, Some("a.com"), "unknown_issuer"),
        ("not verified", stranger.leaf(&["x.com"], |_| {}), &nothing, Some("a.com"), ""),
        (
            "for clients",
            authority.leaf(&["a.com"], |params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }),
            &trusted,
            Some("a.com"),
            "not_for_servers",
        ),
        (
            "revoked",
            authority.leaf(&["a.com"], |params| {
                params.serial_number = Some(SerialNumber::from(REVOKED));
            }),
            &with_crl,
            Some("a.com"),
            "revoked",
        ),
        ("not revoked", plain(), &with_crl, Some("a.com"), ""),
    ];
    let (one, other) = (named(&["c.com", "a.com"]), named(&["c.com"]));
    let (uri, part) = (named(&["spiffe://cluster/ns/a"]), named(&["spiffe://cluster/ns"]));
    let more: Vec<(&str, Leaf, &Origination, Option<&str>, &str)> = vec![
        ("one of the listed names", plain(), &one, Some("z.com"), ""),
        ("listed names before the Host", plain(), &other, Some("a.com"), "another_name"),
        ("URI", spiffe(), &uri, None, ""),
        ("part of a URI", spiffe(), &part, None, "another_name"),
    ];
    let originator = originator();
    for (what, leaf, origination, host, expected) in cases.into_iter().chain(more) {
        let server = hello(leaf, None).await;
        let result = outcome(&originator, &server, origination, host, Alpn::None).await;
        match expected {
            "" => assert_eq!(result.as_deref(), Ok("hi"), "{what}"),
            reason => {
                let details = result.expect_err(what);
                assert!(details.contains("CERTIFICATE_VERIFY_FAILED"), "{what}: {details}");
                assert!(details.contains(reason), "{what}: {details}");
            }
        }
    }
}

/// A server that signs for itself.
#[tokio::test]
async fn self_signed() {
    let key = rcgen::generate_simple_self_signed(vec!["a.com".to_owned()]).expect("a certificate");
    let leaf = Leaf {
        certificate: key.cert.der().clone(),
        certificate_pem: key.cert.pem(),
        key_pem: key.signing_key.serialize_pem(),
        key: rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der())
            .expect("a key"),
    };
    let server = hello(leaf, None).await;
    let trusted = Authority::new().trusted();
    // Its directory is gone, too: no file is no TLS.
    let result = outcome(&originator(), &server, &trusted, Some("a.com"), Alpn::None).await;
    assert!(result.expect_err("no file").starts_with("TLS_error:_/"));
    let authority = Authority::new();
    let result =
        outcome(&originator(), &server, &authority.trusted(), Some("a.com"), Alpn::None).await;
    assert!(result.expect_err("not trusted").contains("CERTIFICATE_VERIFY_FAILED"));
}

/// TLS-5, TLS-11.
#[tokio::test]
async fn what_is_sent() {
    let authority = Authority::new();
    let names = ["a.com", "b.com", "127.0.0.1"];
    let server = hello(authority.leaf(&names, |_| {}), None).await;
    let trusted = authority.trusted();
    let with_sni = Origination { sni: Some("b.com".into()), ..trusted.clone() };
    let chain_only = Origination { verify: Verify::ChainOnly, ..trusted.clone() };
    type Case<'a> = (&'a Origination, Option<&'a str>, Alpn, Option<&'a str>, &'a [&'a str]);
    let cases: [Case<'_>; 6] = [
        (&trusted, Some("a.com"), Alpn::Http1, Some("a.com"), &["http/1.1"]),
        (&trusted, Some("a.com:80"), Alpn::Http2, Some("a.com"), &["h2"]),
        (&with_sni, Some("a.com"), Alpn::None, Some("b.com"), &[]),
        (&trusted, Some("127.0.0.1"), Alpn::None, None, &[]),
        (&chain_only, None, Alpn::None, None, &[]),
        (&trusted, Some("a.com."), Alpn::None, Some("a.com"), &[]),
    ];
    let originator = originator();
    for (origination, host, alpn, sni, protocols) in cases {
        outcome(&originator, &server, origination, host, alpn).await.expect("a connection");
        let seen = server.seen.lock().expect("no panic").pop().expect("a handshake");
        let expected = Seen {
            sni: sni.map(str::to_owned),
            alpn: protocols.iter().map(|one| (*one).to_owned()).collect(),
            client_certificate: false,
        };
        assert_eq!(seen, expected, "{host:?} {alpn:?}");
    }
}

/// Credentials that a test can change.
#[derive(Default)]
struct Kept(std::sync::Mutex<HashMap<String, Arc<Credentials>>>);

impl Secrets for Kept {
    fn get(&self, name: &str) -> Option<Arc<Credentials>> {
        self.0.lock().expect("no panic").get(name).cloned()
    }
}

/// TLS-9, TLS-10: files and secrets, right and broken.
#[tokio::test]
async fn mutual() {
    let authority = Authority::new();
    let client = authority.leaf(&[], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let server = hello(authority.leaf(&["a.com"], |_| {}), Some(&authority)).await;
    let secrets = Arc::new(Kept::default());
    let originator = Originator::new(Arc::clone(&secrets) as Arc<dyn Secrets>);
    let go = |origination: Origination| {
        let (originator, server) = (&originator, &server);
        async move { outcome(originator, server, &origination, Some("a.com"), Alpn::Http1).await }
    };
    let trusted = authority.trusted();
    let files = Origination {
        identity: Some(Identity::Files {
            certificate: authority.file("client.pem", &client.certificate_pem),
            key: authority.file("client.key", &client.key_pem),
        }),
        ..trusted.clone()
    };
    assert_eq!(go(files.clone()).await.as_deref(), Ok("hi"));
    assert!(server.seen.lock().expect("no panic")[0].client_certificate);
    assert!(go(trusted.clone()).await.expect_err("no certificate").starts_with("TLS_error:"));

    let secret = Origination {
        trust: Trust::Secret("s".into()),
        identity: Some(Identity::Secret("s".into())),
        ..Origination::default()
    };
    let missing = go(secret.clone()).await.expect_err("no secret");
    assert!(missing.contains("no_credential_\"s\""), "{missing}");
    let put = |change: &dyn Fn(&mut Credentials)| {
        let mut credentials = Credentials {
            certificate: Some(client.certificate_pem.as_bytes().into()),
            key: Some(client.key_pem.as_bytes().into()),
            ca: Some(authority.pem().as_bytes().into()),
            ..Credentials::default()
        };
        change(&mut credentials);
        secrets.0.lock().expect("no panic").insert("s".into(), Arc::new(credentials));
    };
    put(&|_| {});
    assert_eq!(go(secret.clone()).await.as_deref(), Ok("hi"));
    // A changed secret counts at once.
    put(&|credentials| credentials.ca = Some(Authority::new().pem().as_bytes().into()));
    assert!(go(secret.clone()).await.expect_err("another CA").contains("unknown_issuer"));
    for broken in [
        &(|credentials: &mut Credentials| credentials.key = None) as &dyn Fn(&mut Credentials),
        &|credentials| credentials.key = Some(b"nonsense"[..].into()),
        &|credentials| credentials.certificate = Some(b"nonsense"[..].into()),
        &|credentials| credentials.ca = Some(b"nonsense"[..].into()),
        &|credentials| credentials.crl = Some(b"nonsense"[..].into()),
    ] {
        put(broken);
        let details = go(secret.clone()).await.expect_err("broken");
        assert!(details.contains("holds_no_usable"), "{details}");
    }

    // A changed file counts at the next connection.
    let stranger = Authority::new();
    authority.file("ca.pem", &format!("{}\n", stranger.pem()));
    assert!(go(files).await.expect_err("another CA").contains("unknown_issuer"));
}

/// GAP-18: what cannot be carried out is refused before anything is sent.
#[tokio::test]
async fn impossible() {
    let authority = Authority::new();
    let server = hello(authority.leaf(&["a.com"], |_| {}), None).await;
    let refused = Origination { verify: Verify::Impossible, ..authority.trusted() };
    let nameless = authority.trusted();
    let bad_sni = Origination { sni: Some("a b".into()), ..authority.trusted() };
    for (origination, host) in
        [(&refused, Some("a.com")), (&nameless, None), (&bad_sni, Some("a.com"))]
    {
        let result = outcome(&originator(), &server, origination, host, Alpn::None).await;
        assert!(result.expect_err("refused").contains("cannot_be_originated"));
    }
    assert_eq!(server.seen.lock().expect("no panic").len(), 0);
}

/// LOG-49: what the log calls failures that are not about certificates.
#[tokio::test]
async fn not_tls() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let at = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let server = Server { at, seen: Arc::default() };
    let authority = Authority::new();
    let result =
        outcome(&originator(), &server, &authority.trusted(), Some("a.com"), Alpn::None).await;
    assert!(result.expect_err("no TLS").contains("WRONG_VERSION_NUMBER"));
    assert_eq!(alert_name(AlertDescription::HandshakeFailure), "HANDSHAKE_FAILURE");
}

/// T-45: only TLS 1.2 and 1.3 are offered, nothing is resumed and no data sent early, also on a second
/// connection to the same server; a server that answers with an older version is refused.
#[tokio::test]
async fn t45_nothing_old_is_offered_and_nothing_resumed() {
    use tls_parser::{TlsExtension, TlsMessage, TlsMessageHandshake};

    let authority = Authority::new();
    let server = hello(authority.leaf(&["a.com"], |_| {}), None).await;
    let originator = originator();
    let trusted = authority.trusted();
    // A first connection, whose tickets a second one could use.
    outcome(&originator, &server, &trusted, Some("a.com"), Alpn::None).await.expect("connects");

    let old = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let at = old.local_addr().expect("an address");
    let answering = tokio::spawn(async move {
        let (mut stream, _) = old.accept().await.expect("accepts");
        let mut head = [0; 5];
        stream.read_exact(&mut head).await.expect("a record");
        let mut body = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        stream.read_exact(&mut body).await.expect("a record");
        // ServerHello of TLS 1.1, TLS_RSA_WITH_AES_128_CBC_SHA, no session, no extensions.
        let hello = [&[2, 0, 0, 38, 3, 2][..], &[7; 32], &[0, 0, 0x2f, 0]].concat();
        let record = [&[22, 3, 2, 0, 42][..], &hello].concat();
        stream.write_all(&record).await.expect("writes");
        let _ = stream.read_to_end(&mut Vec::new()).await;
        [&head[..], &body].concat()
    });
    let at_old = Server { at, seen: Arc::default() };
    let refused = outcome(&originator, &at_old, &trusted, Some("a.com"), Alpn::None).await;
    assert!(refused.is_err(), "TLS 1.1 was spoken");

    let sent = answering.await.expect("no panic");
    let (_, record) = tls_parser::parse_tls_plaintext(&sent).expect("a record");
    let [TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello))] = &record.msg[..] else {
        panic!("no hello: {record:?}")
    };
    let extensions = hello.ext.expect("extensions");
    let (_, extensions) = tls_parser::parse_tls_extensions(extensions).expect("extensions");
    let mut versions = Vec::new();
    for extension in &extensions {
        match extension {
            TlsExtension::SupportedVersions(offered) => {
                versions.extend(offered.iter().map(|version| version.0));
            }
            TlsExtension::PreSharedKey(_) | TlsExtension::EarlyData(_) => {
                panic!("resumes: {extension:?}")
            }
            TlsExtension::SessionTicket(ticket) => assert_eq!(*ticket, b"", "a ticket"),
            _ => {}
        }
    }
    versions.sort_unstable();
    assert_eq!(versions, [0x0303, 0x0304]);
}
