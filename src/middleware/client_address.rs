//! The client behind proxies: what trusted ones say of it, in the variables where an application looks for it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::address::Trusted;
use crate::application::{Application, Body, Environ, Error, ForwardedFor, StartResponse};
use crate::protocol::cgi::names;

/// Whose word on the client counts, and which.
#[derive(Debug, Clone)]
pub struct ClientAddressConfig {
    /// The proxies that are believed. Default: nobody.
    pub trusted: Trusted,
    /// The field that they use. Exactly one is read: a proxy that keeps one passes the others on as clients sent them.
    /// Default: X-Forwarded-For.
    pub field: ClientField,
    /// Whether what they say of the scheme and the port is believed: X-Forwarded-Proto and X-Forwarded-Port, or `proto`. Default: yes.
    pub scheme: bool,
    /// Whether what they say of the host is believed: X-Forwarded-Host, or `host`. Many proxies pass on here what clients send, so that it takes
    /// one that doesn't. Default: no.
    pub host: bool,
}

impl Default for ClientAddressConfig {
    fn default() -> Self {
        Self { trusted: Trusted::default(), field: ClientField::default(), scheme: true, host: false }
    }
}

/// Where proxies say who their client is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ClientField {
    /// X-Forwarded-For, to which each proxy adds its client; and X-Forwarded-Proto, -Host and -Port.
    #[default]
    XForwarded,
    /// Forwarded (RFC 7239).
    Forwarded,
    /// A field with one address, such as X-Real-IP; the last one where there are several. Scheme, host and port as with `XForwarded`.
    Named(String),
}

/// Tells `application` of the client that its requests really come from, where a trusted proxy says so.
///
/// Read from the right, the first address that is no trusted proxy's is the client's; if all are, the leftmost. Reading ends at what is no
/// address, since nobody can tell who wrote what stands left of it. REMOTE_ADDR and REMOTE_PORT become the client's (unset where its
/// port is not known) and REMOTE_HOST goes; HTTPS, REQUEST_SCHEME and SERVER_PORT speak of its connection; HTTP_HOST and SERVER_NAME of the host that
/// it asked for. The fields stay what they are, HTTP_… variables, and an extension ([`ForwardedFor`]) says who the peer was.
///
/// What a peer says that is not trusted changes nothing.
///
/// ```
/// # use gatespan::{application::{Body, Environ, Error, StartResponse}, middleware::{ClientAddressConfig, client_address}};
/// # async fn shop(_: Environ, _: StartResponse) -> Result<Body, Error> { Ok(Body::empty()) }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = ClientAddressConfig { trusted: "127.0.0.1,10.0.0.0/8".parse()?, ..ClientAddressConfig::default() };
/// let behind_a_proxy = client_address(shop, config);
/// # Ok(()) }
/// ```
pub fn client_address<A: Application>(application: A, config: ClientAddressConfig) -> ClientAddress<A> {
    ClientAddress { application, config }
}

/// See [`client_address`].
pub struct ClientAddress<A> {
    application: A,
    config: ClientAddressConfig,
}

impl<A: Application> Application for ClientAddress<A> {
    async fn call(&self, mut environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        self.config.resolve(&mut environ)?;
        self.application.call(environ, start_response).await
    }
}

/// What proxies say of one hop, or the last of them of all.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    /// None where it is no address.
    node: Option<(IpAddr, Option<u16>)>,
    proto: Option<String>,
    host: Option<String>,
}

impl ClientAddressConfig {
    fn resolve(&self, environ: &mut Environ) -> Result<(), Error> {
        let peer = environ.get(names::REMOTE_ADDR).unwrap_or_default().to_vec();
        if !self.trusted.covers(&peer) {
            return Ok(());
        }
        let hops = self.hops(environ);
        let mut client = None;
        for hop in hops.iter().rev() {
            let Some((address, _)) = hop.node else { break };
            client = Some(hop);
            if !self.trusted.contains(address) {
                break;
            }
        }
        // Without an address the peer's other words are still its own.
        let said = client.or(hops.last());
        let node = client.and_then(|hop| hop.node);
        let proto = said.and_then(|hop| hop.proto.as_deref()).map(str::to_ascii_lowercase).filter(|_| self.scheme);
        let host = said.and_then(|hop| hop.host.clone()).filter(|host| self.host && is_host(host));
        let port = match self.field {
            ClientField::Forwarded => None,
            _ => environ.get("HTTP_X_FORWARDED_PORT").and_then(last_of).and_then(port).filter(|_| self.scheme),
        };

        environ.extensions_mut().insert(ForwardedFor::new(peer));
        if let Some((address, port)) = node {
            environ.set(names::REMOTE_ADDR, address.to_canonical().to_string())?;
            match port {
                Some(port) => environ.set(names::REMOTE_PORT, port.to_string())?,
                // The one that was there is the proxy's.
                None => environ.variables_mut().remove(names::REMOTE_PORT),
            }
            environ.variables_mut().remove(names::REMOTE_HOST);
        }
        if let Some(host) = &host {
            environ.set("HTTP_HOST", host)?;
            environ.set(names::SERVER_NAME, split_host(host).0)?;
        }
        let usual_port = match proto.as_deref() {
            Some("https") => {
                environ.set(names::HTTPS, "on")?;
                environ.set(names::REQUEST_SCHEME, "https")?;
                Some(443)
            }
            Some("http") => {
                environ.variables_mut().remove(names::HTTPS);
                environ.set(names::REQUEST_SCHEME, "http")?;
                Some(80)
            }
            _ => None,
        };
        if usual_port.is_some() || host.is_some() || port.is_some() {
            let asked_for = environ.text("HTTP_HOST").ok().flatten().and_then(|host| split_host(host).1);
            if let Some(port) = port.or(asked_for).or(usual_port) {
                environ.set(names::SERVER_PORT, port.to_string())?;
            }
        }
        Ok(())
    }

    /// The chain as the field tells it, the nearest last.
    fn hops(&self, environ: &Environ) -> Vec<Said> {
        let list = |name: &str| -> Vec<String> {
            let Some(value) = environ.get(name) else { return Vec::new() };
            value
                .split(|byte| *byte == b',')
                .map(|entry| String::from_utf8_lossy(entry.trim_ascii()).into_owned())
                .collect()
        };
        let mut hops: Vec<Said> = match &self.field {
            ClientField::Forwarded => {
                return environ.get("HTTP_FORWARDED").map(forwarded).unwrap_or_default();
            }
            ClientField::XForwarded => {
                let nodes = list("HTTP_X_FORWARDED_FOR");
                nodes.iter().map(|entry| Said { node: node(entry), ..Said::default() }).collect()
            }
            ClientField::Named(name) => {
                let entry = environ.header(name).and_then(last_of).and_then(|value| std::str::from_utf8(value).ok());
                entry.map(|entry| Said { node: node(entry), ..Said::default() }).into_iter().collect()
            }
        };
        if hops.is_empty() {
            hops.push(Said::default());
        }
        // One value for each hop, or the nearest proxy's for all of them: what stands before it may be anybody's.
        let (protos, hosts) = (list("HTTP_X_FORWARDED_PROTO"), list("HTTP_X_FORWARDED_HOST"));
        let count = hops.len();
        for (index, hop) in hops.iter_mut().enumerate() {
            let of = |values: &[String]| {
                let value = if values.len() == count { values.get(index) } else { values.last() };
                value.filter(|value| !value.is_empty()).cloned()
            };
            (hop.proto, hop.host) = (of(&protos), of(&hosts));
        }
        hops
    }
}

/// The last member of a list.
fn last_of(list: &[u8]) -> Option<&[u8]> {
    list.rsplit(|byte| *byte == b',').next().map(<[u8]>::trim_ascii)
}

fn port(digits: &[u8]) -> Option<u16> {
    let digits = std::str::from_utf8(digits).ok()?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// An address with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn node(text: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some((address, None));
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Some((socket.ip(), Some(socket.port())));
    }
    let bracketed = text.strip_prefix('[')?.strip_suffix(']')?;
    bracketed.parse::<Ipv6Addr>().ok().map(|address| (address.into(), None))
}

/// The name and the port of a host.
fn split_host(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        Some((name, digits)) if !digits.contains(']') => (name, port(digits.as_bytes())),
        _ => (host, None),
    }
}

/// Whether it may be part of an address: a name or an address, and perhaps a port (RFC 9110 7.2).
fn is_host(host: &str) -> bool {
    let (name, _) = split_host(host);
    let digits = host[name.len()..].strip_prefix(':');
    let is_name = match name.strip_prefix('[') {
        Some(literal) => literal.strip_suffix(']').is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)),
    };
    is_name && digits.is_none_or(|digits| port(digits.as_bytes()).is_some())
}

/// Forwarded (RFC 7239 4): elements with commas between them, pairs with semicolons, values in quotes or not. An element that is none says
/// nothing, and reading stops there.
fn forwarded(list: &[u8]) -> Vec<Said> {
    let text = String::from_utf8_lossy(list);
    let mut elements = vec![Said::default()];
    let mut rest = text.trim();
    while !rest.is_empty() {
        let Some((name, value, after)) = pair(rest) else {
            // Where this element ends can't be told; all that came before it may be part of it.
            return vec![Said::default()];
        };
        if let Some(element) = elements.last_mut() {
            match &*name.to_ascii_lowercase() {
                "for" => element.node = node(&value),
                "proto" => element.proto = Some(value),
                "host" => element.host = Some(value),
                _ => {}
            }
        }
        let after = after.trim_start();
        rest = match after.as_bytes().first() {
            Some(b';') => after[1..].trim_start(),
            Some(b',') => {
                elements.push(Said::default());
                after[1..].trim_start()
            }
            None => "",
            Some(_) => return vec![Said::default()],
        };
    }
    elements
}

/// One `name=value` at the beginning of a text, and what follows it.
fn pair(text: &str) -> Option<(&str, String, &str)> {
    let (name, rest) = text.split_once('=')?;
    let is_token = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"(),/;<=>?@[\\]{}".contains(&byte))
    };
    if !is_token(name) {
        return None;
    }
    let Some(quoted) = rest.strip_prefix('"') else {
        let end = rest.find([';', ',', ' ', '\t']).unwrap_or(rest.len());
        // Many leave the quotes out where there is a colon.
        let value = &rest[..end];
        return (!value.is_empty() && !value.contains('"')).then(|| (name, value.to_owned(), &rest[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((name, value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

impl<A> fmt::Debug for ClientAddress<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientAddress").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::forms::{counted_request, forms, text_of};
    use super::*;
    use crate::application::Variables;

    const TRUSTED: &str = "10.0.0.0/8,2001:db8:1::/48,unix:";

    fn resolved(config: ClientAddressConfig, peer: &str, pairs: &[(&str, &str)]) -> Environ {
        let usual = [
            ("REMOTE_ADDR", peer),
            ("REMOTE_PORT", "999"),
            ("REMOTE_HOST", "proxy.example"),
            ("SERVER_NAME", "inner"),
            ("SERVER_PORT", "8080"),
            ("HTTP_HOST", "inner:8080"),
            ("REQUEST_SCHEME", "http"),
        ];
        let mut environ = Environ::new(Variables::from_iter(usual.iter().chain(pairs).copied()));
        let config = ClientAddressConfig { trusted: TRUSTED.parse().unwrap(), ..config };
        config.resolve(&mut environ).unwrap();
        environ
    }

    fn of(field: ClientField) -> ClientAddressConfig {
        ClientAddressConfig { field, ..ClientAddressConfig::default() }
    }

    fn text<'a>(environ: &'a Environ, name: &str) -> Option<&'a str> {
        environ.text(name).unwrap()
    }

    #[test]
    fn from_the_right_the_first_address_that_is_not_trusted_is_the_client_s() {
        for (peer, list, address, port) in [
            ("10.0.0.1", "192.0.2.1", "192.0.2.1", None),
            ("10.0.0.1", "203.0.113.9, 192.0.2.1", "192.0.2.1", None),
            ("10.0.0.1", "192.0.2.1, 10.0.0.2,10.0.0.3", "192.0.2.1", None),
            ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3", None),
            ("10.0.0.1", "192.0.2.1:1234", "192.0.2.1", Some("1234")),
            ("10.0.0.1", "[2001:db8::1]:1234", "2001:db8::1", Some("1234")),
            ("10.0.0.1", "2001:db8::1, 2001:db8:1::2", "2001:db8::1", None),
            ("10.0.0.1", "::ffff:192.0.2.1", "192.0.2.1", None),
            ("unix:", "192.0.2.1", "192.0.2.1", None),
            // What is no address ends it: the nearest one that is known counts.
            ("10.0.0.1", "192.0.2.1, unknown, 10.0.0.2", "10.0.0.2", None),
            ("10.0.0.1", "192.0.2.1, , 10.0.0.2", "10.0.0.2", None),
            ("10.0.0.1", "192.0.2.1, evil", "10.0.0.1", Some("999")),
            ("10.0.0.1", "", "10.0.0.1", Some("999")),
            // Strangers are not believed.
            ("192.0.2.7", "203.0.113.9", "192.0.2.7", Some("999")),
            ("", "203.0.113.9", "", Some("999")),
        ] {
            let environ = resolved(of(ClientField::XForwarded), peer, &[("HTTP_X_FORWARDED_FOR", list)]);
            assert_eq!(
                (text(&environ, "REMOTE_ADDR"), text(&environ, "REMOTE_PORT")),
                (Some(address), port),
                "{peer} {list}"
            );
            assert_eq!(text(&environ, "HTTP_X_FORWARDED_FOR"), Some(list));
            assert_eq!(text(&environ, "REMOTE_HOST").is_some(), address == peer, "{peer} {list}");
            let is_trusted = peer.starts_with("10.") || peer == "unix:";
            let told = environ.extensions().get::<ForwardedFor>().map(|told| told.remote_addr.clone());
            assert_eq!(told, is_trusted.then(|| peer.as_bytes().to_vec()), "{peer} {list}");
        }
    }

    #[test]
    fn repeated_fields_are_one_list() {
        let pairs = [("HTTP_X_FORWARDED_FOR", "203.0.113.9"), ("HTTP_X_FORWARDED_FOR", "192.0.2.1")];
        assert_eq!(text(&resolved(of(ClientField::XForwarded), "10.0.0.1", &pairs), "REMOTE_ADDR"), Some("192.0.2.1"));
    }

    #[test]
    fn scheme_port_and_host_are_the_client_s() {
        let believes = ClientAddressConfig { host: true, ..of(ClientField::XForwarded) };
        let list = ("HTTP_X_FORWARDED_FOR", "192.0.2.1");
        for (pairs, https, port, host, name) in [
            (
                &[("HTTP_X_FORWARDED_PROTO", "https"), ("HTTP_X_FORWARDED_HOST", "example.org")][..],
                true,
                "443",
                "example.org",
                "example.org",
            ),
            (
                &[("HTTP_X_FORWARDED_PROTO", "HTTPS"), ("HTTP_X_FORWARDED_HOST", "example.org:8443")],
                true,
                "8443",
                "example.org:8443",
                "example.org",
            ),
            (
                &[("HTTP_X_FORWARDED_PROTO", "https"), ("HTTP_X_FORWARDED_PORT", "444")],
                true,
                "444",
                "inner:8080",
                "inner",
            ),
            (&[("HTTP_X_FORWARDED_PROTO", "http"), ("HTTPS", "on")], false, "8080", "inner:8080", "inner"),
            (&[("HTTP_X_FORWARDED_HOST", "[::1]:1")], false, "1", "[::1]:1", "[::1]"),
            (&[("HTTP_X_FORWARDED_HOST", "evil/path")], false, "8080", "inner:8080", "inner"),
            (
                &[("HTTP_X_FORWARDED_PROTO", "gopher"), ("HTTP_X_FORWARDED_PORT", "x")],
                false,
                "8080",
                "inner:8080",
                "inner",
            ),
            // One for each hop is the client's own; otherwise the nearest proxy's counts.
            (&[("HTTP_X_FORWARDED_PROTO", "http, https")], true, "8080", "inner:8080", "inner"),
        ] {
            let pairs: Vec<_> = pairs.iter().copied().chain([list]).collect();
            let environ = resolved(believes.clone(), "10.0.0.1", &pairs);
            let got = (
                environ.url_scheme() == "https",
                text(&environ, "SERVER_PORT"),
                text(&environ, "HTTP_HOST"),
                text(&environ, "SERVER_NAME"),
            );
            // The Host that the request came with names the port where nobody else does.
            let port = if port == "443" && host == "inner:8080" { "8080" } else { port };
            assert_eq!(got, (https, Some(port), Some(host), Some(name)), "{pairs:?}");
            let scheme = if https { "https" } else { "http" };
            assert_eq!(text(&environ, "REQUEST_SCHEME"), Some(scheme), "{pairs:?}");
        }
        let pairs = [list, ("HTTP_X_FORWARDED_PROTO", "https"), ("HTTP_X_FORWARDED_HOST", "example.org")];
        let careful = ClientAddressConfig { scheme: false, ..of(ClientField::XForwarded) };
        let environ = resolved(careful, "10.0.0.1", &pairs);
        assert_eq!((environ.url_scheme(), text(&environ, "HTTP_HOST")), ("http", Some("inner:8080")));
        let environ = resolved(believes, "192.0.2.7", &pairs);
        assert_eq!((environ.url_scheme(), text(&environ, "HTTP_HOST")), ("http", Some("inner:8080")));
    }

    #[test]
    fn each_hop_has_its_own_scheme_where_there_are_as_many() {
        let pairs = [("HTTP_X_FORWARDED_FOR", "192.0.2.1, 10.0.0.2"), ("HTTP_X_FORWARDED_PROTO", "https, http")];
        assert_eq!(resolved(of(ClientField::XForwarded), "10.0.0.1", &pairs).url_scheme(), "https");
    }

    #[test]
    fn forwarded_is_read_as_its_specification_has_it() {
        for (list, address, port, scheme) in [
            ("for=192.0.2.1", "192.0.2.1", None, "http"),
            ("For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17", Some("4711"), "http"),
            ("for=192.0.2.60;proto=https;by=203.0.113.43", "192.0.2.60", None, "https"),
            ("for=203.0.113.9, for=192.0.2.1 ; proto=https, for=10.0.0.2;proto=http", "192.0.2.1", None, "https"),
            ("for=192.0.2.1:80", "192.0.2.1", Some("80"), "http"),
            ("host=\"a,b;for=\\\"x\";for=192.0.2.1", "192.0.2.1", None, "http"),
            ("for=192.0.2.1, for=_hidden, for=10.0.0.2", "10.0.0.2", None, "http"),
            ("for=192.0.2.1, for=unknown", "10.0.0.1", Some("999"), "http"),
            ("for=203.0.113.9, for=\"192.0.2.1", "10.0.0.1", Some("999"), "http"),
            ("for=192.0.2.1 for=x", "10.0.0.1", Some("999"), "http"),
            ("proto=https", "10.0.0.1", Some("999"), "https"),
            ("", "10.0.0.1", Some("999"), "http"),
        ] {
            let environ = resolved(of(ClientField::Forwarded), "10.0.0.1", &[("HTTP_FORWARDED", list)]);
            let got = (text(&environ, "REMOTE_ADDR"), text(&environ, "REMOTE_PORT"), environ.url_scheme());
            assert_eq!(got, (Some(address), port, scheme), "{list}");
        }
    }

    #[test]
    fn only_the_field_that_was_chosen_is_read() {
        let pairs = [
            ("HTTP_X_FORWARDED_FOR", "203.0.113.1"),
            ("HTTP_FORWARDED", "for=203.0.113.2"),
            ("HTTP_X_REAL_IP", "203.0.113.3"),
        ];
        for (field, address) in [
            (ClientField::XForwarded, "203.0.113.1"),
            (ClientField::Forwarded, "203.0.113.2"),
            (ClientField::Named("X-Real-IP".into()), "203.0.113.3"),
            (ClientField::Named("CF-Connecting-IP".into()), "10.0.0.1"),
        ] {
            let environ = resolved(of(field.clone()), "10.0.0.1", &pairs);
            assert_eq!(text(&environ, "REMOTE_ADDR"), Some(address), "{field:?}");
        }
    }

    #[tokio::test]
    async fn all_forms_pass_through() {
        for (form, app) in forms() {
            let (environ, closed) = counted_request("/a");
            let app = client_address(app, ClientAddressConfig::default());
            assert_eq!(text_of(app, environ).await, (200, "|/a".into()), "{form}");
            assert_eq!(closed.count(), 1, "{form}");
        }
    }
}
