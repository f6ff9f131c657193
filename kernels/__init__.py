"""Operations with a plain torch reference beside a Triton kernel; knows nothing of RL."""
