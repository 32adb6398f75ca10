//! How a middleware that believed a proxy tells what is behind it whom the request really came from.

/// In the extensions of an environ whose variables speak of the client on the far side of trusted proxies: what they said before,
/// which is the peer that this process was connected to. An upstream that adds itself to the chain names that peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForwardedFor {
    /// REMOTE_ADDR as the gateway had it.
    pub remote_addr: Vec<u8>,
}

impl ForwardedFor {
    /// By a peer of that REMOTE_ADDR.
    pub fn new(remote_addr: impl Into<Vec<u8>>) -> Self {
        Self { remote_addr: remote_addr.into() }
    }
}
