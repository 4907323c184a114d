"""Networks: one backbone interface over timm, torchvision and own modules; heads, teachers, queues, decoders."""
