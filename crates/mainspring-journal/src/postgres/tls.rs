//! TLS to the server as libpq's `sslmode` says it: who is checked, and against which certificates.
//!
//! | mode | encrypted | certificate's chain | its name |
//! |---|---|---|---|
//! | disable | no | | |
//! | allow, prefer | if the server can | no | no |
//! | require | yes | with `sslrootcert` | no |
//! | verify-ca | yes | yes | no |
//! | verify-full | yes | yes | yes |
//!
//! `allow` is taken for `prefer`. Without `sslrootcert`, `verify-full` trusts what the system
//! trusts, where libpq looks for `~/.postgresql/root.crt`; `verify-ca` needs a file, since anybody
//! can have a certificate that the system trusts.
//!
//! Source: PostgreSQL 17 documentation, 32.19.1 "Client Verification of Server Certificates".

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::JournalError;

/// What an address asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl TlsMode {
    /// Reads the value of `sslmode`.
    pub(super) fn parse(text: &str) -> Result<Self, JournalError> {
        match text {
            "disable" => Ok(Self::Disable),
            "allow" | "prefer" => Ok(Self::Prefer),
            "require" => Ok(Self::Require),
            "verify-ca" => Ok(Self::VerifyCa),
            "verify-full" => Ok(Self::VerifyFull),
            _ => Err(JournalError::postgres_url_invalid("postgresql address with another sslmode")),
        }
    }
}

/// How connections are encrypted.
pub(super) struct Tls {
    /// `None` if never.
    pub(super) connector: Option<MakeRustlsConnect>,
    /// Whether a server with which no encryption can be agreed on is spoken to without.
    pub(super) optional: bool,
}

impl Tls {
    /// Makes ready what a mode needs; `root` is the value of `sslrootcert`.
    pub(super) fn new(mode: TlsMode, root: Option<&str>, name: &str) -> Result<Self, JournalError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let roots = match root {
            None | Some("system") => None,
            Some(file) => Some(Roots::read(Path::new(file), provider.clone(), name)?),
        };
        let check: Arc<dyn ServerCertVerifier> = match (mode, roots) {
            (TlsMode::Disable, _) => return Ok(Self { connector: None, optional: false }),
            (TlsMode::VerifyFull, None) => {
                return Ok(Self { connector: Some(system(provider, name)?), optional: false });
            }
            (TlsMode::VerifyCa, None) => {
                return Err(JournalError::postgres_url_invalid(
                    "postgresql address with sslmode verify-ca and no file in sslrootcert",
                ));
            }
            (TlsMode::Prefer, _) | (TlsMode::Require, None) => Arc::new(Anybody(algorithms)),
            (TlsMode::Require | TlsMode::VerifyCa, Some(roots)) => {
                Arc::new(Known { roots, algorithms, by_name: false })
            }
            (TlsMode::VerifyFull, Some(roots)) => {
                Arc::new(Known { roots, algorithms, by_name: true })
            }
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| JournalError::postgres_tls(name, error))?
            .dangerous()
            .with_custom_certificate_verifier(check)
            .with_no_client_auth();
        let connector = Some(MakeRustlsConnect::new(config));
        Ok(Self { connector, optional: mode == TlsMode::Prefer })
    }
}

/// Trusts what the operating system trusts.
fn system(provider: Arc<CryptoProvider>, name: &str) -> Result<MakeRustlsConnect, JournalError> {
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(BuilderVerifierExt::with_platform_verifier)
        .map_err(|error| JournalError::postgres_tls(name, error))?
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// The certificates of `sslrootcert`.
#[derive(Debug)]
struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    chains: Arc<WebPkiServerVerifier>,
}

impl Roots {
    fn read(file: &Path, provider: Arc<CryptoProvider>, name: &str) -> Result<Self, JournalError> {
        let failed = |error: String| JournalError::postgres_tls_file(name, file, &error);
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(file)
            .and_then(Iterator::collect)
            .map_err(|error| failed(error.to_string()))?;
        let mut store = RootCertStore::empty();
        for certificate in &certificates {
            store.add(certificate.clone()).map_err(|error| failed(error.to_string()))?;
        }
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider)
            .build()
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { certificates, chains })
    }
}

/// Believes every certificate; the signatures of the handshake must be right all the same.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// Believes what leads back to a certificate of the file, or is in it itself.
#[derive(Debug)]
struct Known {
    roots: Roots,
    algorithms: WebPkiSupportedAlgorithms,
    by_name: bool,
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.roots.certificates.iter().any(|known| known == end_entity) {
            // A certificate that signs itself, as many servers have: it is no end of a chain in
            // the eyes of the library, but it is the very one that was asked for.
            if self.by_name {
                let parsed = ParsedCertificate::try_from(end_entity)?;
                rustls::client::verify_server_name(&parsed, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        let chains = &self.roots.chains;
        match chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        {
            // The name is looked at only once the chain is found to be right.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.by_name => Ok(ServerCertVerified::assertion()),
            checked => checked,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
