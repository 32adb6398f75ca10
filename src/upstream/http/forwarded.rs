//! What the server is told of the client: `X-Forwarded-*`, or Forwarded (RFC 7239).

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::request::{client_host, refuse};
use super::{Config, Failure, ForwardedFields, TargetPath};
use crate::application::{Environ, ForwardedFor, encode_path};
use crate::protocol::cgi::names;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// All that servers are known to believe, none of which a client is to claim for itself.
const CLAIMS: [HeaderName; 8] = [
    header::FORWARDED,
    X_FORWARDED_FOR,
    X_FORWARDED_PROTO,
    X_FORWARDED_HOST,
    X_FORWARDED_PORT,
    X_FORWARDED_PREFIX,
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-real-ip"),
];

/// Adds the fields to those of the request, which have lost their hop-by-hop ones already: a client that names one of these in
/// Connection loses its own claim and not this proxy's (CVE-2022-31813).
pub(super) fn add(fields: &mut HeaderMap, environ: &Environ, config: &Config) -> Result<(), Failure> {
    if config.forwarded == ForwardedFields::Off {
        return Ok(());
    }
    let resolved = environ.extensions().get::<ForwardedFor>();
    let peer = match resolved {
        Some(before) => &before.remote_addr,
        None => environ.get(names::REMOTE_ADDR).unwrap_or_default(),
    };
    // A middleware that believed the peer has looked at its own list.
    let is_trusted = resolved.is_some() || config.trusted.covers(peer);
    if !is_trusted {
        for name in &CLAIMS {
            fields.remove(name);
        }
    }
    let peer = std::str::from_utf8(peer).ok().and_then(|peer| peer.parse::<IpAddr>().ok());
    let host = client_host(environ);
    match config.forwarded {
        ForwardedFields::Off => {}
        ForwardedFields::XForwarded => {
            if let Some(peer) = peer {
                append(fields, X_FORWARDED_FOR, peer.to_string().as_bytes())?;
            }
            let mut claim = |name: HeaderName, value: &[u8]| -> Result<(), Failure> {
                // What a trusted proxy said of the client's own connection is nearer to the client.
                if !fields.contains_key(&name) {
                    fields.insert(name, HeaderValue::from_bytes(value).map_err(|_| refuse("HTTP_HOST", value))?);
                }
                Ok(())
            };
            claim(X_FORWARDED_PROTO, environ.url_scheme().as_bytes())?;
            claim(X_FORWARDED_HOST, &host)?;
            if let Some(port) = environ.get(names::SERVER_PORT).filter(|port| !port.is_empty()) {
                claim(X_FORWARDED_PORT, port)?;
            }
            if config.path == TargetPath::PathInfo && !environ.script_name().is_empty() {
                let prefix = encode_path(environ.script_name());
                claim(X_FORWARDED_PREFIX, prefix.as_bytes())?;
            }
        }
        ForwardedFields::Forwarded => {
            // RFC 7239 6: an IPv6 address stands in brackets, and what has a colon in quotes.
            let node = match peer {
                Some(IpAddr::V4(address)) => address.to_string(),
                Some(IpAddr::V6(address)) => format!("\"[{address}]\""),
                None => "unknown".to_owned(),
            };
            let mut element = format!("for={node};proto={};host=\"", environ.url_scheme()).into_bytes();
            for byte in host {
                if matches!(byte, b'"' | b'\\') {
                    element.push(b'\\');
                }
                element.push(byte);
            }
            element.push(b'"');
            append(fields, header::FORWARDED, &element)?;
        }
    }
    Ok(())
}

/// Puts a member at the end of a list, which becomes one field.
fn append(fields: &mut HeaderMap, name: HeaderName, member: &[u8]) -> Result<(), Failure> {
    let mut list = Vec::with_capacity(64);
    for value in fields.get_all(&name) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(member);
    let value = HeaderValue::from_bytes(&list).map_err(|_| refuse(name.as_str(), &list))?;
    fields.insert(name, value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::request::head;
    use super::*;
    use crate::application::Variables;

    fn told(forwarded: ForwardedFields, trusted: &str, pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let config = Config { forwarded, trusted: trusted.parse().unwrap(), via: None, ..Config::default() };
        let usual = [("REQUEST_METHOD", "GET"), ("HTTP_HOST", "h:1"), ("SERVER_PORT", "1"), ("PATH_INFO", "/")];
        let environ = Environ::new(Variables::from_iter(usual.iter().chain(pairs).copied()));
        fields_of(&environ, &config)
    }

    fn fields_of(environ: &Environ, config: &Config) -> Vec<(String, String)> {
        let head = head(environ, Some(0), config, "t").unwrap();
        let mut fields: Vec<_> = head
            .headers
            .iter()
            .filter(|(name, _)| *name != header::HOST)
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        fields.sort();
        fields
    }

    fn pairs(fields: &[(&str, &str)]) -> Vec<(String, String)> {
        fields.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    const CLAIMED: [(&str, &str); 6] = [
        ("REMOTE_ADDR", "192.0.2.1"),
        ("HTTP_X_FORWARDED_FOR", "203.0.113.9"),
        ("HTTP_X_FORWARDED_PROTO", "https"),
        ("HTTP_X_FORWARDED_SERVER", "s"),
        ("HTTP_X_REAL_IP", "203.0.113.9"),
        ("HTTP_FORWARDED", "for=203.0.113.9"),
    ];

    #[test]
    fn what_a_stranger_claims_is_replaced() {
        assert_eq!(
            told(ForwardedFields::XForwarded, "10.0.0.0/8", &CLAIMED),
            pairs(&[
                ("x-forwarded-for", "192.0.2.1"),
                ("x-forwarded-host", "h:1"),
                ("x-forwarded-port", "1"),
                ("x-forwarded-proto", "http"),
            ])
        );
        assert_eq!(
            told(ForwardedFields::Forwarded, "", &CLAIMED),
            pairs(&[("forwarded", "for=192.0.2.1;proto=http;host=\"h:1\"")])
        );
    }

    #[test]
    fn a_trusted_peer_s_chain_is_added_to() {
        let told = |forwarded| told(forwarded, "192.0.2.0/24", &CLAIMED);
        let fields = told(ForwardedFields::XForwarded);
        assert!(fields.contains(&("x-forwarded-for".into(), "203.0.113.9, 192.0.2.1".into())), "{fields:?}");
        assert!(fields.contains(&("x-forwarded-proto".into(), "https".into())), "{fields:?}");
        let fields = told(ForwardedFields::Forwarded);
        let chain = "for=203.0.113.9, for=192.0.2.1;proto=http;host=\"h:1\"";
        assert!(fields.contains(&("forwarded".into(), chain.into())), "{fields:?}");
    }

    #[test]
    fn a_resolved_client_is_named_by_the_chain_and_its_proxy_is_added() {
        let mut environ = Environ::new(Variables::from_iter([
            ("REQUEST_METHOD", "GET"),
            ("REMOTE_ADDR", "203.0.113.9"),
            ("HTTP_X_FORWARDED_FOR", "203.0.113.9"),
        ]));
        environ.extensions_mut().insert(ForwardedFor::new("10.0.0.1"));
        let fields = fields_of(&environ, &Config::default());
        assert!(fields.contains(&("x-forwarded-for".into(), "203.0.113.9, 10.0.0.1".into())), "{fields:?}");
    }

    #[test]
    fn a_claim_named_in_connection_is_dropped_and_ours_is_not() {
        let fields = told(
            ForwardedFields::XForwarded,
            "",
            &[("REMOTE_ADDR", "2001:db8::1"), ("HTTP_CONNECTION", "X-Forwarded-For, X-Forwarded-Host")],
        );
        assert!(fields.contains(&("x-forwarded-for".into(), "2001:db8::1".into())), "{fields:?}");
        assert!(fields.contains(&("x-forwarded-host".into(), "h:1".into())), "{fields:?}");
    }

    #[test]
    fn odd_peers_and_hosts_are_quoted() {
        let forwarded = |pairs: &[(&str, &str)]| told(ForwardedFields::Forwarded, "", pairs)[0].1.clone();
        assert_eq!(forwarded(&[("REMOTE_ADDR", "::1")]), "for=\"[::1]\";proto=http;host=\"h:1\"");
        assert_eq!(forwarded(&[("REMOTE_ADDR", "unix:")]), "for=unknown;proto=http;host=\"h:1\"");
    }

    #[test]
    fn off_adds_nothing_and_takes_nothing() {
        let fields = told(ForwardedFields::Off, "", &[("REMOTE_ADDR", "192.0.2.1"), ("HTTP_X_FORWARDED_FOR", "x")]);
        assert_eq!(fields, pairs(&[("x-forwarded-for", "x")]));
    }
}
