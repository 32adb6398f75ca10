//! Networks of addresses, and lists of those that are trusted: which proxies may speak for their clients.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An address and how many of its leading bits count: `10.0.0.0/8`, `2001:db8::/32`, or one address alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Canonical: an IPv4 address that is written as an IPv6 one is the IPv4 address.
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected an address or network such as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32, got \"{0}\"")]
pub struct NetworkError(String);

impl Network {
    /// Whether that address is one of it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                own.to_bits() & mask == other.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let refuse = || NetworkError(text.into());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| refuse())?;
        let Some(prefix) = prefix else { return Ok(address.into()) };
        // `parse` alone would take a sign.
        let digits = Some(prefix).filter(|prefix| prefix.bytes().all(|byte| byte.is_ascii_digit()));
        let prefix: u8 = digits.and_then(|digits| digits.parse().ok()).ok_or_else(refuse)?;
        let canonical = address.to_canonical();
        let prefix = match (address, canonical) {
            (IpAddr::V6(_), IpAddr::V4(_)) => prefix.checked_sub(96).ok_or_else(refuse)?,
            _ => prefix,
        };
        if prefix > if canonical.is_ipv4() { 32 } else { 128 } {
            return Err(refuse());
        }
        Ok(Self { address: canonical, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The peers whose word is taken for what they say of their clients. By default nobody's is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trusted {
    /// Peers by address.
    pub networks: Vec<Network>,
    /// Whether peers on a Unix socket, which have no address, are trusted as well.
    pub unix: bool,
}

impl Trusted {
    /// Whether an address is in one of the networks.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(address))
    }

    /// Whether the peer is trusted that REMOTE_ADDR speaks of: an address, or `unix:` for a peer on a Unix socket.
    pub fn covers(&self, remote_addr: &[u8]) -> bool {
        match std::str::from_utf8(remote_addr).map(str::parse) {
            Ok(Ok(address)) => self.contains(address),
            _ => self.unix && remote_addr == b"unix:",
        }
    }
}

/// A list, with commas or blanks between, of networks and `unix:`.
impl FromStr for Trusted {
    type Err = NetworkError;

    fn from_str(list: &str) -> Result<Self, NetworkError> {
        let mut trusted = Self::default();
        for entry in list.split([',', ' ']).filter(|entry| !entry.is_empty()) {
            match entry {
                "unix:" => trusted.unix = true,
                network => trusted.networks.push(network.parse()?),
            }
        }
        Ok(trusted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_the_addresses_that_begin_with_its_bits() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("192.0.2.7", "::ffff:192.0.2.7", "::ffff:192.0.2.8"),
            ("::ffff:10.0.0.0/104", "10.1.2.3", "11.0.0.1"),
            ("192.0.2.128/25", "192.0.2.129", "192.0.2.127"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::1", "::1", "127.0.0.1"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("::/0", "2001:db8::1", "192.0.2.1"),
        ] {
            let parsed: Network = network.parse().unwrap();
            assert!(parsed.contains(inside.parse().unwrap()), "{network}: {inside}");
            assert!(!parsed.contains(outside.parse().unwrap()), "{network}: {outside}");
            assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in ["", "x", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0/8", "::/129", "::ffff:1.2.3.4/95"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_list_of_trusted_peers_may_name_unix_sockets() {
        let trusted: Trusted = "127.0.0.1, 10.0.0.0/8 unix:".parse().unwrap();
        assert!(trusted.covers(b"10.1.1.1") && trusted.covers(b"unix:") && !trusted.covers(b"192.0.2.1"));
        assert!(!trusted.covers(b"") && !trusted.covers(b"\xff"));
        assert!(!Trusted::default().covers(b"unix:") && !Trusted::default().covers(b"127.0.0.1"));
        assert!("127.0.0.1,x".parse::<Trusted>().is_err());
    }
}
