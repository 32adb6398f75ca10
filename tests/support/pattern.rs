//! The bytes that uploads and downloads of any size consist of, as both sides make them: the application that sends
//! them and the test that checks them. No two blocks are alike, so that a lost, repeated or exchanged one shows.

/// The length of all blocks but the last.
pub const BLOCK: usize = 64 * 1024;

/// The blocks of a pattern of `length` bytes.
pub fn blocks(length: u64) -> impl Iterator<Item = Vec<u8>> + Send + 'static {
    let mut block: Vec<u8> = (0..BLOCK).map(|index| (index * 31 + index / 251) as u8).collect();
    (0..length.div_ceil(BLOCK as u64)).map(move |number| {
        block[..8].copy_from_slice(&number.to_be_bytes());
        let rest = length - number * BLOCK as u64;
        block[..rest.min(BLOCK as u64) as usize].to_vec()
    })
}

/// Bytes as lower-case hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
