//! Version 2 of the PROXY protocol's header, by which a load balancer says whose connection it passes on (the
//! specification is HAProxy's `proxy-protocol.txt`, section 2.2).
//!
//! A header is whole, or more bytes are needed, or it is none. Whether its sender is to be believed is not asked here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a header begins with: no protocol that clients speak does.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes before those that it counts.
pub const FIXED_BYTES: usize = 16;
/// Most bytes that a header may count: several times what addresses and all known additions take.
pub const COUNTED_BYTES_MAX: usize = 4096;

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The balancer's own, which asks whether anybody is there.
    Local,
    /// A client's.
    Proxied {
        /// The client.
        source: SocketAddr,
        /// Where it connected to.
        destination: SocketAddr,
    },
}

/// Why bytes are no header that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Something else.
    #[error("there is no header of version 2 of the PROXY protocol")]
    Signature,
    /// Neither `LOCAL` nor `PROXY`.
    #[error("the header's command is not known")]
    Command,
    /// Not TCP, over IPv4 or IPv6.
    #[error("the header is not about TCP over IPv4 or IPv6")]
    Family,
    /// Fewer bytes than addresses take, or more than [`COUNTED_BYTES_MAX`].
    #[error("the header's length is not one that its addresses have")]
    Length,
}

/// How many bytes the header takes whose first [`FIXED_BYTES`] these are.
///
/// # Errors
/// If they are of none.
pub fn length(fixed: &[u8; FIXED_BYTES]) -> Result<usize, HeaderError> {
    if !fixed.starts_with(&SIGNATURE) {
        return Err(HeaderError::Signature);
    }
    let [.., high, low] = *fixed;
    let counted = usize::from(u16::from_be_bytes([high, low]));
    if counted > COUNTED_BYTES_MAX { Err(HeaderError::Length) } else { Ok(FIXED_BYTES + counted) }
}

/// Reads a whole header, of the length that [`length`] gave. What it says beyond addresses is passed over.
///
/// # Errors
/// If it is none, or about no TCP connection.
pub fn parse(header: &[u8]) -> Result<Header, HeaderError> {
    let (fixed, counted) = header.split_first_chunk::<FIXED_BYTES>().ok_or(HeaderError::Signature)?;
    if length(fixed)? != header.len() {
        return Err(HeaderError::Length);
    }
    let [.., command, family, _, _] = *fixed;
    match command {
        0x20 => return Ok(Header::Local),
        0x21 => {}
        _ => return Err(HeaderError::Command),
    }
    let (source, destination, ports) = match family {
        0x11 => addresses::<4>(counted).map(|(s, d, p)| (v4(s), v4(d), p)),
        0x21 => addresses::<16>(counted).map(|(s, d, p)| (v6(s), v6(d), p)),
        _ => return Err(HeaderError::Family),
    }
    .ok_or(HeaderError::Length)?;
    Ok(Header::Proxied {
        source: SocketAddr::new(source, ports.0),
        destination: SocketAddr::new(destination, ports.1),
    })
}

type Addresses<'a, const N: usize> = (&'a [u8; N], &'a [u8; N], (u16, u16));

fn addresses<const N: usize>(bytes: &[u8]) -> Option<Addresses<'_, N>> {
    let (source, rest) = bytes.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let [a, b, c, d] = *rest.first_chunk::<4>()?;
    Some((source, destination, (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))))
}

fn v4(bytes: &[u8; 4]) -> IpAddr {
    Ipv4Addr::from(*bytes).into()
}

/// What is IPv4 in the guise of IPv6 is IPv4.
fn v6(bytes: &[u8; 16]) -> IpAddr {
    IpAddr::from(Ipv6Addr::from(*bytes)).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u8, family: u8, counted: &[u8]) -> Vec<u8> {
        let n = u16::try_from(counted.len()).expect("short").to_be_bytes();
        [&SIGNATURE[..], &[command, family], &n, counted].concat()
    }

    #[test]
    fn headers_are_read_or_refused() {
        let four = [192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x34, 0x0c, 0x38];
        let proxied = |source: &str, destination: &str| Header::Proxied {
            source: source.parse().expect("address"),
            destination: destination.parse().expect("address"),
        };
        let right = proxied("192.0.2.1:4660", "198.51.100.2:3128");
        assert_eq!(parse(&header(0x21, 0x11, &four)), Ok(right));
        // With additions behind it.
        assert_eq!(parse(&header(0x21, 0x11, &[&four[..], &[4, 0, 1, 0]].concat())), Ok(right));
        let ip = |text: &str| text.parse::<Ipv6Addr>().expect("address").octets();
        let six = [&ip("2001:db8::1")[..], &ip("::ffff:198.51.100.2"), &[0, 1, 0, 2]].concat();
        assert_eq!(parse(&header(0x21, 0x21, &six)), Ok(proxied("[2001:db8::1]:1", "198.51.100.2:2")));
        for local in [header(0x20, 0, &[]), header(0x20, 0x11, &four)] {
            assert_eq!(parse(&local), Ok(Header::Local));
        }
        for (bytes, error) in [
            (header(0x22, 0x11, &four), HeaderError::Command),
            (header(0x11, 0x11, &four), HeaderError::Command),
            (header(0x21, 0x00, &four), HeaderError::Family),
            (header(0x21, 0x12, &four), HeaderError::Family),
            (header(0x21, 0x31, &[0; 216]), HeaderError::Family),
            (header(0x21, 0x11, &four[..11]), HeaderError::Length),
            (header(0x21, 0x21, &six[..35]), HeaderError::Length),
            (header(0x21, 0x11, &[0; COUNTED_BYTES_MAX + 1]), HeaderError::Length),
            ([&header(0x21, 0x11, &four)[..], b"x"].concat(), HeaderError::Length),
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r\n".to_vec(), HeaderError::Signature),
            (SIGNATURE.to_vec(), HeaderError::Signature),
        ] {
            assert_eq!(parse(&bytes), Err(error), "{}", bytes.escape_ascii());
        }
    }
}
