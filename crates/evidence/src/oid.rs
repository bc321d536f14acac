//! Object identifiers of AMD's extensions in certificates of endorsement keys (AMD publication 57230, VCEK certificate
//! and KDS interface specification), below `1.3.6.1.4.1.3704.1`.

/// Version of the structure: INTEGER.
pub const STRUCT_VERSION: &str = "1.3.6.1.4.1.3704.1.1";
/// Name of the product line, with the stepping on some lines: IA5String.
pub const PRODUCT_NAME: &str = "1.3.6.1.4.1.3704.1.2";
/// The boot loader's security version: INTEGER.
pub const BOOTLOADER: &str = "1.3.6.1.4.1.3704.1.3.1";
/// The secure operating system's security version: INTEGER.
pub const TEE: &str = "1.3.6.1.4.1.3704.1.3.2";
/// The SNP firmware's security version: INTEGER.
pub const SNP: &str = "1.3.6.1.4.1.3704.1.3.3";
/// The microcode's security version: INTEGER.
pub const MICROCODE: &str = "1.3.6.1.4.1.3704.1.3.8";
/// The firmware management component's security version, on Turin: INTEGER.
pub const FMC: &str = "1.3.6.1.4.1.3704.1.3.9";
/// The chip's identifier, in a VCEK's certificate: bare bytes, 64 before Turin, 8 on Turin.
pub const HARDWARE_ID: &str = "1.3.6.1.4.1.3704.1.4";
/// The cloud provider's name, in a VLEK's certificate: IA5String.
pub const PROVIDER_ID: &str = "1.3.6.1.4.1.3704.1.5";
