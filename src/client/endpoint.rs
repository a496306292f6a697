//! The address of a server, as people write it.

use tonic::transport::Endpoint;

use super::{Access, ClientError};

/// The endpoint of `host:port`, `http://host:port` or `https://host:port`. Without a scheme it is plain, or encrypted
/// if `access` names authorities for the server or a certificate of the client.
///
/// # Errors
/// The text has another form.
pub(super) fn parse(text: &str, access: &Access) -> Result<Endpoint, ClientError> {
    let malformed = || ClientError::Endpoint { endpoint: text.to_owned() };
    let encrypted = access.authorities.is_some() || access.identity.is_some();
    let url = match text.split_once("://") {
        Some(("http" | "https", _)) => text.to_owned(),
        Some(_) => return Err(malformed()),
        None if encrypted => format!("https://{text}"),
        None => format!("http://{text}"),
    };
    let endpoint = Endpoint::from_shared(url).map_err(|_| malformed())?;
    let uri = endpoint.uri();
    let has_scheme = text.contains("://");
    // With a scheme, the port has a default; without one, it is required.
    let is_complete = uri.host().is_some_and(|host| !host.is_empty()) && (has_scheme || uri.port().is_some());
    // A user name would not be sent, and a path or a query could not be reached.
    let is_bare = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        && uri.path_and_query().is_none_or(|path| ["", "/"].contains(&path.as_str()));
    if is_complete && is_bare { Ok(endpoint) } else { Err(malformed()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, access: &Access) -> Option<String> {
        parse(text, access).ok().map(|endpoint| endpoint.uri().to_string())
    }

    #[test]
    fn a_scheme_may_be_left_out() {
        for (text, expected) in [
            ("ships.example:50051", Some("http://ships.example:50051/")),
            ("127.0.0.1:50051", Some("http://127.0.0.1:50051/")),
            ("[::1]:50051", Some("http://[::1]:50051/")),
            ("http://ships.example:50051", Some("http://ships.example:50051/")),
            ("https://ships.example:50051/", Some("https://ships.example:50051/")),
            ("https://ships.example", Some("https://ships.example/")),
            ("ships.example", None),
            ("", None),
            (":50051", None),
            ("http://", None),
            ("ships.example:port", None),
            ("ftp://ships.example:50051", None),
            ("ships.example:50051/v1", None),
            ("http://ships.example:50051?v=1", None),
            ("http://user:secret@ships.example:50051", None),
            ("user@ships.example:50051", None),
            ("two words:50051", None),
        ] {
            assert_eq!(parsed(text, &Access::default()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_server_that_somebody_vouches_for_is_reached_encrypted() {
        let access = Access { authorities: Some("ca.pem".into()), ..Access::default() };
        assert_eq!(parsed("ships.example:50051", &access).as_deref(), Some("https://ships.example:50051/"));
    }
}
