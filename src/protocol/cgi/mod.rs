//! CGI 1.1 (RFC 3875): what a request's variables mean, and what the head of a script's answer may say.
//!
//! In reading order:
//!
//! - [`MetaVariables`] (section 4): a typed view over the variables of one request, the [`names`] of those variables, and
//!   the rules by which header fields become variables;
//! - [`ResponseHead`] (section 6): the head of an answer, parsed by [`ResponseHeadDecoder`] and written by
//!   [`encode_head`], with [`Limits`]; [`Fields`], which are checked once; and the answers of NPH scripts (section 5), which begin with a status line.
//!
//! Both are used from both sides of the interface: a gateway reads the variables and writes the head, an upstream writes
//! the variables and reads the head.

mod excerpt;
mod fields;
mod meta_variables;
mod response_head;
mod status;

pub use excerpt::Excerpt;
pub use fields::Fields;
#[cfg(feature = "application")]
pub(crate) use meta_variables::FORBIDDEN;
pub use meta_variables::{
    MetaVariableError, MetaVariables, ServerProtocol, Version, is_environment_name, is_environment_value, is_forbidden,
    names, separator, variable_name,
};
pub use response_head::{
    FieldError, HeadError, Limits, ResponseHead, ResponseHeadDecoder, ResponseKind, Status, check_field, check_status,
    encode_head, encode_head_status_last, is_nph, is_nph_name,
};
pub use status::{allows_body, default_reason};

/// Whether a byte may stand in a token: a field name, a method, the name of a protocol (RFC 3875 2.2).
fn is_token_byte(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0;
        while byte < 256 {
            table[byte] = (byte as u8).is_ascii_alphanumeric()
                || matches!(
                    byte as u8,
                    b'!' | b'#'
                        | b'$'
                        | b'%'
                        | b'&'
                        | b'\''
                        | b'*'
                        | b'+'
                        | b'-'
                        | b'.'
                        | b'^'
                        | b'_'
                        | b'`'
                        | b'|'
                        | b'~'
                );
            byte += 1;
        }
        table
    };
    TOKEN[usize::from(byte)]
}

/// Whether all of it is a token, which has at least one byte.
fn is_token(bytes: &[u8]) -> bool {
    // Nearly always all of it is, so that to look at all is faster than to stop early.
    !bytes.is_empty() && bytes.iter().fold(true, |all, byte| all & is_token_byte(*byte))
}

/// The number in ASCII digits and nothing else: no sign, no blank, no list. `None` too when it does not fit.
pub(crate) fn decimal<N: TryFrom<u64>>(digits: &[u8]) -> Option<N> {
    if digits.is_empty() {
        return None;
    }
    let number = digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })?;
    N::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decimal_is_digits_only_and_fits() {
        assert_eq!(decimal::<u64>(b"0"), Some(0));
        assert_eq!(decimal::<u64>(b"007"), Some(7));
        assert_eq!(decimal::<u64>(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(decimal::<u16>(b"65535"), Some(65535));
        assert_eq!(decimal::<u16>(b"65536"), None);
        for refused in ["", "18446744073709551616", "+1", "-1", " 1", "1 ", "1,1", "0x1", "1.0", "1e3", "١", "1\0"] {
            assert_eq!(decimal::<u64>(refused.as_bytes()), None, "{refused:?}");
        }
    }

    #[test]
    fn a_token_has_no_separator_control_or_eight_bit_byte() {
        assert!(is_token(b"Content-Type") && is_token(b"!#$%&'*+-.^_`|~09AZaz"));
        assert!(!is_token(b""));
        for byte in b"()<>@,;:\\\"/[]?={} \t\r\n\0\x7f\x80\xff" {
            assert!(!is_token(&[*byte]), "{byte:#04x}");
        }
    }
}
