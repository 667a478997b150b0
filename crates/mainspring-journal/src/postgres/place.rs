//! Reads a `postgresql://` address: where the server is and how to speak to it.
//!
//! Invariant: nothing of an address but host, port and database ever reaches a message, since the
//! rest may be a password. The driver knows three values of `sslmode`; the others, and the
//! certificates, are taken out of the address here and mean what libpq's documentation says.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::tls::{Tls, TlsMode};
use crate::Access;
use crate::error::JournalError;

/// Where libpq of Debian and others looks for the server if the address names no host.
const SOCKET_FOLDER: &str = "/var/run/postgresql";

/// How long the start of one connection may take unless the address says otherwise.
const CONNECT_S: u64 = 5;

/// A peer that is silent for so long is taken for gone, unless the address says otherwise.
const SILENCE_S: u64 = 20;

/// Parameters that the driver reads itself.
const PARAMETERS: [&str; 15] = [
    "user",
    "password",
    "dbname",
    "application_name",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "target_session_attrs",
    "channel_binding",
];

/// A server and a database, and how to reach them.
pub(super) struct Place {
    pub(super) config: Config,
    pub(super) tls: Tls,
    /// As messages name it.
    pub(super) name: String,
}

impl Place {
    /// Reads an address.
    pub(super) fn parse(url: &str, access: Access) -> Result<Self, JournalError> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let mut kept = Vec::new();
        let mut mode = None;
        let mut root = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "sslmode" => mode = Some(TlsMode::parse(&decode(value)?)?),
                "sslrootcert" => root = Some(decode(value)?),
                _ if PARAMETERS.contains(&key) => kept.push(pair),
                _ => return Err(unknown_parameter(key)),
            }
        }
        let mode = mode.unwrap_or(TlsMode::Prefer);
        let url = format!("{base}?{}", kept.join("&"));
        // The driver's own message may quote the address.
        let mut config = Config::from_str(&url).map_err(|_| {
            JournalError::postgres_url_invalid("postgresql address that cannot be read")
        })?;
        complete(&mut config, access);
        config.ssl_mode(match mode {
            TlsMode::Disable => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            _ => SslMode::Require,
        });
        let name = name(&config);
        let tls = Tls::new(mode, root.as_deref(), &name)?;
        Ok(Self { config, tls, name })
    }
}

/// Fills in what the address leaves open.
fn complete(config: &mut Config, access: Access) {
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        if Path::new(SOCKET_FOLDER).is_dir() {
            config.host_path(SOCKET_FOLDER);
        } else {
            config.host("localhost");
        }
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(Duration::from_secs(CONNECT_S));
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(Duration::from_secs(SILENCE_S));
    }
    if config.get_keepalives_interval().is_none() && config.get_keepalives_retries().is_none() {
        config.keepalives_idle(Duration::from_secs(SILENCE_S / 2));
        config.keepalives_interval(Duration::from_secs(SILENCE_S / 4));
        config.keepalives_retries(2);
    }
    if config.get_application_name().is_none() {
        config.application_name("mainspring");
    }
    let several = config.get_hosts().len().max(config.get_hostaddrs().len()) > 1;
    if several
        && access == Access::ReadWrite
        && config.get_target_session_attrs() == TargetSessionAttrs::Any
    {
        // Of several servers the one that takes writes is meant.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
}

fn name(config: &Config) -> String {
    let hosts: Vec<String> = match config.get_hosts() {
        [] => config.get_hostaddrs().iter().map(ToString::to_string).collect(),
        hosts => hosts.iter().map(host).collect(),
    };
    let ports = config.get_ports();
    let hosts: Vec<String> = hosts
        .iter()
        .enumerate()
        .map(|(idx, host)| {
            let port = ports.get(idx).or(ports.first()).copied().unwrap_or(5432);
            format!("{host}:{port}")
        })
        .collect();
    let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("postgresql://{}/{database}", hosts.join(","))
}

fn host(host: &Host) -> String {
    match host {
        Host::Tcp(name) => name.clone(),
        #[cfg(unix)]
        Host::Unix(path) => path.display().to_string(),
    }
}

fn unknown_parameter(key: &str) -> JournalError {
    // A parameter's name cannot hold these; then it is part of something else, maybe of a secret.
    let plain =
        key.len() <= 40 && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let what = match plain {
        true => format!("postgresql address with the parameter {key:?}"),
        false => "postgresql address with an unknown parameter".to_owned(),
    };
    JournalError::postgres_url_invalid(&what)
}

/// Takes the percent signs out of a value.
fn decode(value: &str) -> Result<String, JournalError> {
    let bad = || JournalError::postgres_url_invalid("postgresql address with a broken %-sequence");
    let mut decoded = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digits = [bytes.next().ok_or_else(bad)?, bytes.next().ok_or_else(bad)?];
        let digits = std::str::from_utf8(&digits).map_err(|_| bad())?;
        decoded.push(u8::from_str_radix(digits, 16).map_err(|_| bad())?);
    }
    String::from_utf8(decoded).map_err(|_| bad())
}
