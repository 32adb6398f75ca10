//! TLS to the server, by rustls: the server's certificate is always checked.

use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::{Config, TargetError};

pub(super) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    pub(super) fn new(host: &str, config: &Config) -> Result<Self, TargetError> {
        let name = config.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TargetError::ServerName(name.to_owned()))?;
        let (roots, from) = match &config.ca_file {
            Some(file) => {
                let from = file.display().to_string();
                let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
                let refuse = |cause| TargetError::Certificates { from: from.clone(), cause };
                (read.map_err(|error| refuse(Box::new(error) as _))?, from)
            }
            None => {
                let mut found = rustls_native_certs::load_native_certs();
                if found.certs.is_empty() && !found.errors.is_empty() {
                    let cause = Box::new(found.errors.swap_remove(0));
                    return Err(TargetError::Certificates { from: "the system's store".into(), cause });
                }
                (found.certs, "the system's store".into())
            }
        };
        let mut store = RootCertStore::empty();
        // A system's store may hold old certificates that nobody can read any more: one that can be read is enough.
        if store.add_parsable_certificates(roots).0 == 0 {
            return Err(TargetError::Certificates { from, cause: "there is none".into() });
        }
        let versions = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions();
        let refuse = |error| TargetError::Certificates { from: "TLS itself".into(), cause: Box::new(error) };
        let mut tls = versions.map_err(refuse)?.with_root_certificates(store).with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { connector: TlsConnector::from(Arc::new(tls)), name })
    }

    pub(super) async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.connector.connect(self.name.clone(), stream).await
    }
}
